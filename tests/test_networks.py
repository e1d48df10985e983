"""Networks: parameter counts of the papers, shapes, and what a checkpoint must know about them."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from adversarial_lightning import networks
from adversarial_lightning.attacks import Noise, noise_for
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.checkpoints.spec import build, catalogue, describe
from adversarial_lightning.networks import (
    MLP,
    NIN,
    VGG,
    ConvAutoencoder,
    Critic,
    Denoiser,
    ERBaseline,
    ERNet,
    FCDenseNet,
    LeNet5,
    MadryCNN,
    MagnetAutoencoder,
    NoisyConvolutions,
    Normalize,
    ResNet,
    ResNet18,
    SmallCNN,
    TimmClassifier,
    TorchvisionClassifier,
    Whiten,
    WideResNet,
)
from adversarial_lightning.networks.features import outputs
from adversarial_lightning.networks.foreign_weights import load_weights
from adversarial_lightning.networks.weights_file import read

COUNTS: list[tuple[nn.Module, int]] = [
    (SmallCNN(), 312_202),
    (MadryCNN(), 3_274_634),
    *((LeNet5(), 582_026), (LeNet5(maps=[20, 50], hidden=500), 431_080)),
    (NIN(), 966_986),
    (MLP(), 79_510),
    (MLP(features=48, hidden=[5, 6]), 351),
    (MLP(hidden=[1000] * 3), 2_797_010),
    (MLP(hidden=[1200] * 3), 3_836_410),
    (Critic(), 784 * 1200 + 1200 + 1200 * 1200 + 1200 + 1200 * 10 + 10),
    (Critic(label="layers"), 794 * 1200 + 1200 + 1210 * 1200 + 1200 + 1210 + 1),
    *((ConvAutoencoder(), 117_505), (MagnetAutoencoder(), 310), (MagnetAutoencoder(pooled=False), 142)),
    *((FCDenseNet(), 1_375_251), (FCDenseNet(variant=67), 3_460_931), (FCDenseNet(variant=103), 9_320_035)),
]
RESTORERS = [ConvAutoencoder(width=3), MagnetAutoencoder(pooled=False), FCDenseNet(dropout=0.1)]  # images -> images


@pytest.mark.parametrize(
    "network,count", COUNTS, ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else str(v)
)
def test_parameter_counts(network: nn.Module, count: int) -> None:
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("cls", [SmallCNN, MadryCNN, LeNet5])
def test_shapes_and_normalisation(cls: type) -> None:
    x = torch.rand(2, 3, 28, 28)
    raw, normalised = cls(num_classes=7, channels=3), cls(num_classes=7, channels=3, mean=[0.1] * 3, std=[0.5] * 3)
    assert raw(x).shape == (2, 7)
    normalised.load_state_dict(raw.state_dict(), strict=False)
    assert torch.allclose(normalised.eval()(x), raw.eval()((x - 0.1) / 0.5), atol=1e-5)


def test_small_cnn_starts_at_zero_logits() -> None:
    assert not SmallCNN().eval()(torch.rand(2, 1, 28, 28)).any()


def test_normalize_refuses_nonsense() -> None:
    for mean, std in (([0.5], [0.0]), ([0.5, 0.5], [1.0])):
        with pytest.raises(ValueError, match="std"):
            Normalize(mean, std)


# Small forms of the networks whose default is large.
SMALL: dict[type, dict[str, Any]] = {
    WideResNet: {"depth": 10, "width": 1},
    VGG: {"depth": 16},
    ERNet: {"width": 4, "embedding": 3},
    ERBaseline: {"data": "stl10"},
    TimmClassifier: {"name": "resnet10t"},
    TorchvisionClassifier: {"name": "squeezenet1_1"},
}


@pytest.mark.parametrize("network", RESTORERS, ids=lambda n: type(n).__name__)
def test_restorers_return_images_in_eval_mode_one_by_one(network: nn.Module) -> None:
    x = torch.rand(2, network.channels, 32, 32)
    r = network.eval()(x)
    assert r.shape == x.shape and torch.allclose(network(x[:1]), r[:1], atol=1e-5)


OTHERS = [*RESTORERS, Denoiser(RESTORERS[0], 0.1, "digest"), NoisyConvolutions(LeNet5(num_classes=4), 0.3, 0.2)]
CLASSIFIERS = [c for c in catalogue(networks) if c not in (Normalize, Whiten, *map(type, OTHERS))]


@pytest.mark.parametrize(
    "network",
    [*(cls(num_classes=4, **SMALL.get(cls, {})) for cls in CLASSIFIERS), *OTHERS],
    ids=lambda n: type(n).__name__,
)
def test_description_rebuilds_the_network(network: nn.Module) -> None:
    again = build(describe(network), catalogue(networks))
    assert describe(again) == describe(network)
    again.load_state_dict(network.state_dict())


# ------------------------------------------------------------------------------------------- the papers' networks


def bn(n: int) -> int:
    return 2 * n


def dense(*widths: int) -> int:
    return sum((a + 1) * b for a, b in itertools.pairwise(widths))


def convs(*widths: int, kernel: int = 3, bias: bool = True) -> int:
    return sum((a * kernel**2 + bias) * b for a, b in itertools.pairwise(widths))


VGG16 = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG19 = (3, 64, 64, 128, 128, 256, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512)
STL_ENCODER = convs(3, 128, 256, 512, 1024, 2048, kernel=4, bias=False) + 2048 * 2048 * 9
STL_ENCODER += bn(256 + 512 + 1024 + 2 * 2048)
SUM16, SUM19 = bn(sum(VGG16[1:])), bn(sum(VGG19[1:]))

# Network, its settings, image size, parameters: published counts, or the arithmetic of the papers' tables.
PAPERS = [
    (WideResNet, {}, 32, 46_160_474),
    (WideResNet, {"depth": 28}, 32, 36_479_194),
    (WideResNet, {"depth": 16, "width": 8}, 32, 10_961_370),
    (WideResNet, {"depth": 40, "width": 2}, 32, 2_243_546),
    (ResNet, {}, 32, 272_474),
    (ResNet, {"depth": 110}, 32, 1_730_714),
    (ResNet18, {}, 32, 11_172_170),
    (ResNet18, {"preactivation": False}, 32, 11_173_962),
    (VGG, {}, 32, 20_040_522),
    (VGG, {"depth": 16, "batch_norm": False}, 32, convs(*VGG16) + dense(512, 10)),
    (ERBaseline, {"data": "mnist"}, 28, convs(1, 32, 32, 64, 64) + dense(1024, 200, 200, 200, 10)),
    (ERBaseline, {"data": "cifar10"}, 32, 20_040_522),
    (ERBaseline, {"data": "stl10"}, 96,
     convs(3, 32, 64, 128, 128, 256, 256) + bn(864) + dense(256, 256, 256, 256, 10)),
    (ERBaseline, {"data": "tiny_imagenet"}, 64, convs(*VGG16) + SUM16 + dense(2048, 512, 512, 512, 200)),
    (ERNet, {"data": "mnist"}, 28,
     convs(1, 128, 256, 512, 1024, kernel=4, bias=False) + bn(256 + 512 + 1024) + dense(1024, 4)
     + dense(4, 500, 256, 10) + bn(756)),
    (ERNet, {"data": "cifar10"}, 32, convs(*VGG19) + dense(512, 16) + dense(16, 512, 512, 512, 10)),
    (ERNet, {"data": "cifar10", "batch_norm": True}, 32,
     convs(*VGG19) + SUM19 + dense(512, 16) + dense(16, 512, 512, 512, 10)),
    (ERNet, {"data": "stl10"}, 96,
     STL_ENCODER + dense(2048, 16) + dense(16, 500, 256, 10) + bn(756)),
    (ERNet, {"data": "tiny_imagenet"}, 64, convs(*VGG16) + SUM16 + dense(512, 20) + dense(20, 500, 256, 200)),
]  # fmt: skip


@pytest.mark.parametrize("cls, settings, size, count", PAPERS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_the_papers_networks(cls: type, settings: dict[str, Any], size: int, count: int) -> None:
    with torch.device("meta"):  # nothing is computed: shapes only
        network = cls(**settings)
        channels = 1 if settings.get("data") == "mnist" else 3
        logits = network(torch.rand(2, channels, size, size))
    assert sum(p.numel() for p in network.parameters()) == count
    assert logits.shape == (2, 200 if settings.get("data") == "tiny_imagenet" else 10)
    with torch.device("meta"):
        if hasattr(network, "encoder"):
            embedding = network.encoder(torch.rand(2, channels, size, size))
            assert embedding.shape == (2, {"mnist": 4, "tiny_imagenet": 20}.get(settings["data"], 16))


@pytest.mark.parametrize(
    "cls, settings, message",
    [
        (WideResNet, {"depth": 30}, "6 n \\+ 4"),
        (ResNet, {"depth": 18}, "6 n \\+ 2"),
        (VGG, {"depth": 11}, "16 or 19"),
        (VGG, {"image_size": 48}, "multiple of 32"),
        (TimmClassifier, {"name": "hf-hub:someone/something"}, "timm has no model"),
        (TimmClassifier, {"name": "local-dir:/tmp"}, "timm has no model"),
        (TorchvisionClassifier, {"name": "raft_small"}, "torchvision has no classifier"),
    ],
)
def test_networks_refuse_what_does_not_exist(cls: type, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**settings)


def test_wide_resnet_is_the_trades_one() -> None:
    """Against a plain transcription of the formula: the shortcut starts after BN and ReLU, only where widths differ."""
    network = WideResNet(depth=10, width=2, mean=[0.1] * 3, std=[0.3] * 3).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)

    def norm(layer: Any, x: Tensor) -> Tensor:
        return torch.relu(layer.weight.view(1, -1, 1, 1) * x / (1 + layer.eps) ** 0.5 + layer.bias.view(1, -1, 1, 1))

    x = torch.rand(2, 3, 16, 16)
    z = torch.conv2d((x - 0.1) / 0.3, network.conv1.weight, padding=1)
    for stride, group in ((1, network.block1), (2, network.block2), (2, network.block3)):
        (block,) = group.layer
        a = norm(block.bn1, z)
        z = torch.conv2d(a, block.conv1.weight, stride=stride, padding=1)
        z = torch.conv2d(norm(block.bn2, z), block.conv2.weight, padding=1)
        z = z + torch.conv2d(a, block.convShortcut.weight, stride=stride)
    logits = norm(network.bn1, z).mean((2, 3)) @ network.fc.weight.T + network.fc.bias
    assert torch.allclose(network(x), logits, atol=1e-4)


# ------------------------------------------------------------------------------------------------ timm, torchvision


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "test_efficientnet"])
def test_timm_classifier_is_timms_preprocessing_and_model(name: str) -> None:
    torch.manual_seed(0)
    network = TimmClassifier(name).eval()
    config = timm.data.resolve_model_data_config(network.model)
    size = config["input_size"][1]
    image = Image.fromarray(torch.randint(0, 256, (size, size, 3), dtype=torch.uint8).numpy())
    transform = timm.data.create_transform(**{**config, "crop_pct": 1.0})
    with torch.no_grad():
        theirs = network.model(transform(image)[None])
        ours = network(torchvision.transforms.functional.to_tensor(image)[None])
    assert ours.shape == (1, 1000) and (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("cls, name", [(TimmClassifier, "resnet10t"), (TorchvisionClassifier, "squeezenet1_1")])
def test_mean_and_std_can_be_given(cls: type[nn.Module], name: str) -> None:
    """And a checkpoint keeps them."""
    network = cls(name, num_classes=10, mean=[0.5, 0.4, 0.3], std=[0.5, 0.6, 0.7])
    again = build(describe(network), catalogue(networks))
    x = torch.rand(1, 3, 64, 64)
    right = (x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    assert torch.allclose(network.normalize(x), right) and torch.allclose(again.normalize(x), right)


def test_torchvision_classifier_is_torchvisions_preprocessing_and_model() -> None:
    network = TorchvisionClassifier("squeezenet1_1").eval()
    transform = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT.transforms()
    image = torch.randint(0, 256, (3, 224, 224), dtype=torch.uint8)
    transform.resize_size = [224]
    with torch.no_grad():
        assert (network(image[None] / 255) - network.model(transform(image)[None])).abs().max() < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("name,heads", [("inception_v3", ["AuxLogits"]), ("googlenet", ["aux1", "aux2"])])
def test_networks_with_two_heads_give_one(
    name: str, heads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with torchvision's weights, by name, from their file and from a checkpoint: the same network."""
    theirs = torchvision.models.get_model(name, init_weights=False, aux_logits=True, transform_input=True).eval()
    state = {key: value.clone() for key, value in theirs.state_dict().items()}
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda *_, **__: state)
    torch.save(state, tmp_path / "weights.pth")
    x = torch.rand(1, 3, 96, 96)
    named = TorchvisionClassifier(name, weights="pretrained")
    with torch.no_grad():
        expected = theirs(named.normalize(x))
        for network in (named, TorchvisionClassifier(name, weights=str(tmp_path / "weights.pth"))):
            assert torch.allclose(network.eval()(x), expected, atol=1e-5)
            again = build(describe(network) | {"init_args": {"name": name}}, catalogue(networks))
            again.load_state_dict(network.state_dict())
            assert torch.allclose(again.eval()(x), expected, atol=1e-5)
            # A fresh network hardly tells one image from another, let alone two scales of its pixels.
            assert network.model.transform_input and again.model.transform_input
        assert network.train()(x.repeat(2, 1, 1, 1)).shape == (2, 1000)
    report = load_weights(TorchvisionClassifier(name), tmp_path / "weights.pth")
    assert {key.split(".")[0] for key in report.ignored if not key.endswith("tracked")} == set(heads)


def test_a_checkpoint_of_a_pretrained_network_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = TorchvisionClassifier("squeezenet1_1", num_classes=3)
    spec = {"class_path": "networks.TorchvisionClassifier", "init_args": {"name": "squeezenet1_1", "num_classes": 3}}
    for weights in ("pretrained", "/etc/passwd"):
        spec["init_args"]["weights"] = weights  # type: ignore[index]
        content = {"state_dict": {f"network.{k}": v for k, v in network.state_dict().items()}}
        torch.save({**content, "catalogue": {"network": spec, "data": None}}, tmp_path / "a.ckpt")
        monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: pytest.fail("a download"))
        again, _ = load_network(tmp_path / "a.ckpt")
        x = torch.rand(1, 3, 64, 64)
        assert torch.equal(again(x), network.eval()(x))


# --------------------------------------------------------------------------------------------- weights from elsewhere


def same(a: nn.Module, b: nn.Module) -> bool:
    x = torch.rand(3, 3, 32, 32)
    return torch.equal(a.eval()(x), b.eval()(x))


def jolted(network: nn.Module) -> nn.Module:
    """The network with BN statistics that are not those of a fresh one."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
    return network


def test_trades_checkpoints_fit(tmp_path: Path) -> None:
    """DataParallel's prefix, and the unused copy of the first group that the TRADES class registers."""
    source = jolted(WideResNet(depth=10, width=1))
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    state |= {f"module.sub_{n}": t for n, t in source.state_dict().items() if n.startswith("block1")}
    torch.save(state, tmp_path / "trades.pt")
    target = WideResNet(depth=10, width=1)
    report = load_weights(target, tmp_path / "trades.pt")
    assert same(source, target) and report.fits and set(report.mapped) == set(source.state_dict())
    assert all(f"module.{ours}" == theirs for ours, theirs in report.mapped.items())
    assert report.ignored and "unused copy" in report.lines()[1]


@pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict"])
@pytest.mark.parametrize(
    "prefix, mean, std",
    [("0.{}", "0.mu", "0.sigma"), ("model.{}", "mean", "std"), ("{}", "normalize.mean", "normalize.std")],
)
def test_robustbench_checkpoints_bring_their_normalisation(
    prefix: str, mean: str, std: str, container: str | None, tmp_path: Path
) -> None:
    source = jolted(ResNet(depth=8, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4]))
    names = {"normalize.mean": mean, "normalize.std": std}
    rename = {
        n: names.get(n) or prefix.replace("0", "1").format(n.replace("linear", "fc")) for n in source.state_dict()
    }
    state: Any = {rename[n]: t for n, t in source.state_dict().items() if "num_batches" not in n}
    torch.save({container: state, "epoch": 7} if container else state, tmp_path / "model.pth")
    target = ResNet(depth=8, mean=[0.0] * 3, std=[1.0] * 3)
    report = load_weights(target, tmp_path / "model.pth")
    assert same(source, target) and report.mapped["normalize.mean"] == mean
    with pytest.raises(ValueError, match=r"unexpected \(2\): .*mean and std"):  # who does not normalise is told
        load_weights(ResNet(depth=8), tmp_path / "model.pth")


def test_a_file_without_normalisation_keeps_that_of_the_configuration(tmp_path: Path) -> None:
    state = {name: tensor.contiguous() for name, tensor in ResNet(depth=8).state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    target = ResNet(depth=8, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.4])
    report = load_weights(target, tmp_path / "a.safetensors")
    assert {"normalize.mean", "normalize.std"} <= set(report.kept) and "kept from the configuration" in report.lines()[
        1
    ]
    assert target.normalize.std.flatten().tolist() == pytest.approx([0.2, 0.3, 0.4])


def test_timm_files_go_into_timm_classifiers(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", num_classes=5)
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    network = TimmClassifier("resnet10t", num_classes=5, weights=str(tmp_path / "a.safetensors"))
    for ours, theirs in zip(network.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("layer2.0.conv1.weight"), r"missing \(1\): layer2\.0\.conv1\.weight"),
        (lambda s: s.update({"layer2.1.conv1.weight": torch.zeros(1)}), r"unexpected \(1\): layer2\.1\.conv1\.weight"),
        (
            lambda s: s.update({"linear.weight": torch.zeros(7, 64)}),
            r"another shape \(1\): linear\.weight: .*\(7, 64\)",
        ),
        (lambda s: [s.pop(n) for n in list(s) if n != "linear.bias"], r"missing \("),
    ],
)
def test_nothing_is_loaded_where_anything_has_no_partner(change: Any, message: str, tmp_path: Path) -> None:
    state = jolted(ResNet(depth=8)).state_dict()
    change(state)
    torch.save(state, tmp_path / "a.pt")
    network = ResNet(depth=8)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_weights(network, tmp_path / "a.pt")
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


class Trap:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("code ran",))


def test_unsafe_damaged_and_foreign_files(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "trap": Trap()}, tmp_path / "unsafe.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "page.pt").write_text("  <!DOCTYPE html><html>Google Drive: virus scan warning")
    (tmp_path / "cut.safetensors").write_bytes(b"123456789")
    (tmp_path / "cut.pt").write_bytes(b"PK123")
    for name, message in (
        ("unsafe.pt", "objects besides tensors"),
        ("list.pt", "no state dict"),
        ("page.pt", "web page"),
        ("cut.safetensors", "damaged"),
        ("cut.pt", "damaged"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            read(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        read(tmp_path / "none.pt")


def test_named_outputs_of_one_pass() -> None:
    network, x = ResNet(depth=8).eval(), torch.rand(2, 3, 32, 32, requires_grad=True)
    logits, found = outputs(network, x, ["layer1", "layer3.0.bn2", "linear"])
    assert torch.equal(logits, network(x)) and torch.equal(found["linear"], logits)
    assert found["layer1"].shape == (2, 16, 32, 32) and found["layer3.0.bn2"].shape == (2, 64, 8, 8)
    assert torch.autograd.grad(found["layer1"].sum(), x)[0].any()
    assert not any(module._forward_hooks for module in network.modules())
    with pytest.raises(ValueError, match=r"ResNet has no part layer9; it has .*layer3\.0"):
        outputs(network, x, ["layer9"])
    with pytest.raises(ValueError, match="unused of"):
        network.unused = nn.Linear(2, 2)
        outputs(network, x, ["unused"])


@pytest.mark.parametrize("cls", [LeNet5, MLP])
def test_first_weights_and_dropout(cls: type) -> None:
    x = torch.rand(2, 1, 28, 28)
    for init in ("glorot", "he"):
        net = cls(init=init)
        for m in net.modules():
            if isinstance(m, nn.Linear | nn.Conv2d):
                fan_in, fan_out = m.weight[0].numel(), m.weight.numel() / m.weight.shape[1]
                std = (2 / fan_in) ** 0.5 if init == "he" else (2 / (fan_in + fan_out)) ** 0.5
                assert m.bias is not None and not m.bias.any()
                assert float(m.weight.detach().std()) == pytest.approx(std, rel=0.15)
                assert (m.weight.abs().max() <= 3**0.5 * std * 1.001) == (init == "glorot")  # uniform, or a tail
    with pytest.raises(ValueError, match="init is one of"):
        cls(init="xavier")
    net = cls(dropout=0.5)
    assert not torch.equal(net(x), net(x)) and torch.equal(net.eval()(x), net(x))
    assert sum(isinstance(m, nn.Dropout) for m in net.modules()) == (2 if cls is LeNet5 else 1)
    net.load_state_dict(cls().state_dict(), strict=cls is LeNet5)


@pytest.mark.parametrize("label", ["head", "layers"])
def test_critic_reads_the_class_and_draws_noise_by_sample(label: str) -> None:
    critic = Critic(4, 64, [16, 16], label)  # type: ignore[arg-type]
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6) % 4
    quiet = Critic(4, 64, [16, 16], label, input_noise=0, hidden_noise=0)  # type: ignore[arg-type]
    quiet.load_state_dict(critic.state_dict())
    assert quiet(x, y).shape == (6,) and torch.equal(quiet(x, y), quiet(x, y))
    assert not torch.allclose(quiet(x, y), quiet(x, (y + 1) % 4))
    assert not torch.equal(critic(x, y), critic(x, y)) and not torch.equal(critic.eval()(x, y), critic(x, y))
    index = torch.arange(6)
    with noise_for(critic, Noise.keyed(0, index)):
        whole = critic(x, y)
    with noise_for(critic, Noise.keyed(0, index[4:])):
        assert torch.allclose(critic(x[4:], y[4:]), whole[4:], atol=1e-6)
    with pytest.raises(ValueError, match="num_classes"):
        Critic(1)


def test_whitening_is_that_of_the_same_images_in_bytes() -> None:
    """As data modules of files give them."""
    x = (torch.rand(20, 1, 4, 4) * 255).round()
    floats, pixels = Whiten(16), Whiten(16)
    floats.fit(x / 255)
    pixels.fit(x.byte())
    assert torch.equal(floats.matrix, pixels.matrix) and torch.equal(floats.mean, pixels.mean)


def test_whitening() -> None:
    """Fitted on training images: covariance eigenvalues s / (s + 0.1); images of one colour stay finite; reloads."""
    torch.manual_seed(0)
    mix = torch.rand(1, 12, 12)
    x = (torch.rand(4000, 1, 12) @ mix / 8).clamp(0, 1).view(-1, 3, 2, 2)
    layer = Whiten(12)
    assert torch.allclose(layer(x).flatten(1), layer.contrast(x))
    u = layer.contrast(x).double()
    s = torch.linalg.eigvalsh(torch.cov(u.T, correction=0)).clamp_min(0)
    layer.fit(x)
    z = layer(x).flatten(1).double()
    assert z.mean(0).abs().max() < 1e-5
    found = torch.linalg.eigvalsh(torch.cov(z.T, correction=0))
    assert torch.allclose(found, s / (s + 0.1), atol=1e-4)
    again = Whiten(12)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x[:5]), layer(x[:5])) and again.fitted
    flat = torch.full((1, 3, 2, 2), 0.4, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(flat).sum(), flat)
    assert gradient.isfinite().all() and layer(flat).isfinite().all()
    with pytest.raises(ValueError, match="at least 2"):
        layer.fit(x[:1])
    assert NIN(num_classes=4, whiten=True, size=8)(torch.rand(2, 3, 8, 8)).shape == (2, 4)
