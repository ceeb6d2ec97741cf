"""The options of the scripts: what is wrong with one is said in one line, before anything else happens."""

import argparse

import degradation
import evaluate_imagenet
import localize
import predict
import pytest
import segment_shapes
import speedrun_cifar10
import train_cifar_resnet
import train_cifar_vgg
import train_imagenet
import transfer
from common.options import OPTIONS, add_options

SCRIPTS = [
    train_cifar_resnet,
    train_cifar_vgg,
    train_imagenet,
    degradation,
    speedrun_cifar10,
    localize,
    segment_shapes,
    transfer,
    predict,
    evaluate_imagenet,
]
RATES = [(train_cifar_resnet, "--lr"), (train_cifar_resnet, "--weight-decay"), (train_cifar_vgg, "--lr")]
RATES += [(train_imagenet, "--lr"), (localize, "--class-lr"), (localize, "--box-lr")]


@pytest.mark.parametrize("number", ["nan", "inf", "-1"])
@pytest.mark.parametrize(("script", "option"), RATES, ids=lambda part: getattr(part, "__name__", part))
def test_a_rate_is_a_finite_number_of_0_or_more(run, script, option, number):
    status, output = run(script, option, number)
    assert status == 2
    assert f"argument {option}: expected a finite number >= 0, got {number}" in output


@pytest.mark.parametrize(
    "script", [train_cifar_resnet, train_imagenet, degradation, speedrun_cifar10, localize, transfer]
)
def test_a_seed_is_a_whole_number_of_0_or_more(run, script):
    status, output = run(script, "--seed", -1)
    assert status == 2
    assert "argument --seed: expected a whole number >= 0, got -1" in output


@pytest.mark.parametrize("option", ["--batch-size", "--limit-train", "--epochs", "--iterations"])
def test_a_count_is_a_whole_number_of_1_or_more(run, option):
    status, output = run(train_cifar_resnet, option, 0)
    assert status == 2
    assert "expected a whole number >= 1, got 0" in output


@pytest.mark.parametrize("number", ["0", "nan", "-0.5", "inf"])
def test_epochs_that_may_be_broken_off_are_more_than_0(run, number):
    status, output = run(speedrun_cifar10, "--epochs", number)
    assert status == 2
    assert f"argument --epochs: expected a finite number > 0, got {number}" in output


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_every_script_explains_itself(run, script):
    status, output = run(script, "--help")
    assert status == 0
    assert script.__doc__ in output
    assert "None" not in output


def test_epochs_and_iterations_exclude_each_other(run):
    status, output = run(train_cifar_resnet, "--epochs", 1, "--iterations", 1)
    assert status == 2
    assert "not allowed with argument" in output


@pytest.mark.parametrize("dtype", ["tf32", "bfloat16"])
def test_a_cpu_computes_in_float32(run, tmp_path, dtype):
    status, output = run(train_cifar_resnet, "--dtype", dtype, "--out", tmp_path / "run")
    assert status == 2
    assert f"--dtype {dtype} needs --device cuda" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", [train_cifar_resnet, train_cifar_vgg, degradation, speedrun_cifar10, transfer])
def test_a_gpu_that_is_missing_is_one_line(run, tmp_path, script):
    more = ["--random-init"] if script is transfer else ["--out", tmp_path / "run"]
    status, output = run(script, *more, "--device", "cuda")
    assert status == 2
    assert "error: device 'cuda'" in output
    assert not (tmp_path / "run").exists()


def test_every_option_of_the_table_can_be_added():
    parser = argparse.ArgumentParser()
    add_options(parser, *OPTIONS, batch_size=3, out="here")
    args = parser.parse_args(["--data", "there"])
    assert vars(args).keys() == OPTIONS.keys()
    assert (args.batch_size, args.out, args.data) == (3, "here", "there")
