#!/usr/bin/env bash
# Works through the fits of "Papers as programs", one after the other, one thread, lowest priority; resumes what was cut off.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONPATH=$HOME/a026d16 CUDA_VISIBLE_DEVICES=
cd $HOME/a026d16
python=$HOME/a026d16/.venv/bin/python
fit() {  # name, then the arguments of `fit`
    local name=$1; shift
    [ -e $HOME/runs/$name/done ] && return
    local resume=()
    [ -e $HOME/runs/$name/checkpoints/last.ckpt ] && resume=(--ckpt_path $HOME/runs/$name/checkpoints/last.ckpt)
    mkdir -p $HOME/runs/$name
    echo "$(date +%F\ %T) begin $name ${resume[*]}" >> $HOME/runs/log.txt
    if /usr/bin/env time -f '%U user s, %e wall s' $python train.py fit "$@" --trainer.default_root_dir $HOME/runs/$name --trainer.enable_progress_bar false --trainer.accelerator cpu "${resume[@]}" >> $HOME/runs/$name/fit.log 2>&1
    then touch $HOME/runs/$name/done; echo "$(date +%F\ %T) done $name: $(tail -1 $HOME/runs/$name/fit.log)" >> $HOME/runs/log.txt
    else echo "$(date +%F\ %T) FAILED $name" >> $HOME/runs/log.txt; fi
}
R=$HOME/runs/recipes; X=configs/experiments
fit pgd_at_mnist_cores --config $R/pgd_at_mnist_cores.yaml --model.init_args.optimizer.init_args.lr 2.0e-3
fit atent_mnist_cores --config $R/atent_mnist_cores.yaml --model.init_args.optimizer.init_args.lr 2.0e-3
fit madry_er_mnist_cores --config $R/madry_er_mnist_cores.yaml
fit margin_mnist_mlp_l2_cores --config $X/margin_mnist_mlp_l2.yaml --trainer.max_epochs 40
fit margin_mnist_mlp_l1_cores --config $X/margin_mnist_mlp_l1.yaml --trainer.max_epochs 40
fit vat_mnist_mlp_cores --config $X/vat_mnist_mlp.yaml --trainer.max_epochs 40
fit fgsm_at_mnist_mlp_cores --config $X/fgsm_at_mnist_mlp.yaml --trainer.max_epochs 40
fit dropout_mnist_mlp_cores --config $X/dropout_mnist_mlp.yaml --trainer.max_epochs 40
fit standard_mnist_mlp_cores --config $X/standard_mnist_mlp.yaml --trainer.max_epochs 40
fit critic_mnist_mlp_cores --config $X/critic_mnist_mlp.yaml --trainer.max_epochs 17
