#!/usr/bin/env bash
# Works through the fits of the papers' tables, one after the other, one thread; goes on where a fit was cut off.
# Run from a clone with an installed environment: RUNS=~/runs DATA=FOLDER/WITH/MNIST results/papers/recipes/fits.sh
set -u
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
RUNS=${RUNS:-$HOME/runs}; LIGHTNING=${LIGHTNING:-lightning}
R=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$RUNS" && cd "$RUNS"
fit() {  # name, then the arguments of `fit`
    local name=$1; shift
    [ -e "$name/done" ] && return
    local resume=()
    [ -e "$name/checkpoints/last.ckpt" ] && resume=(--ckpt_path "$RUNS/$name/checkpoints/last.ckpt")
    mkdir -p "$name"
    echo "$(date +%F\ %T) begin $name ${resume[*]}" >> log.txt
    if /usr/bin/env time -f '%U user s, %e wall s' $LIGHTNING fit "$@" --data.init_args.root "$DATA" --trainer.default_root_dir "$RUNS/$name" \
        --trainer.enable_progress_bar false --trainer.accelerator cpu "${resume[@]}" >> "$name/fit.log" 2>&1
    then touch "$name/done"; echo "$(date +%F\ %T) done $name: $(tail -1 "$name/fit.log")" >> log.txt
    else echo "$(date +%F\ %T) FAILED $name" >> log.txt; fi
}
fit pgd_at_mnist_cores --config "$R/pgd_at_mnist_cores.yaml"
fit atent_mnist_cores --config "$R/atent_mnist_cores.yaml"
fit madry_er_mnist_cores --config "$R/madry_er_mnist_cores.yaml"
fit margin_mnist_mlp_l2_cores --config margin_mnist_mlp_l2 --trainer.max_epochs 40
fit margin_mnist_mlp_l1_cores --config margin_mnist_mlp_l1 --trainer.max_epochs 40
fit vat_mnist_mlp_cores --config vat_mnist_mlp --trainer.max_epochs 40
fit fgsm_at_mnist_mlp_cores --config fgsm_at_mnist_mlp --trainer.max_epochs 40
fit dropout_mnist_mlp_cores --config dropout_mnist_mlp --trainer.max_epochs 40
fit standard_mnist_mlp_cores --config standard_mnist_mlp --trainer.max_epochs 40
fit critic_mnist_mlp_cores --config critic_mnist_mlp --trainer.max_epochs 17
