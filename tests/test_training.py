"""What the training scripts share: whatever ends a run, its folder is good to go on from, and the error is one line."""

import sys

import degradation
import localize
import pytest
import train_cifar_resnet
import train_cifar_vgg
import train_imagenet
import transfer


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script in this process; (exit status or message, stdout and stderr)."""

    def run(script, *options):
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, options)])
        try:
            script.main()
            status = 0
        except SystemExit as end:
            status = end.code
        return status, "".join(capsys.readouterr())

    return run


# -- options -----------------------------------------------------------------------------------------------------------

RATES = [(train_cifar_resnet, "--lr"), (train_cifar_resnet, "--weight-decay"), (train_cifar_vgg, "--lr")]
RATES += [(train_imagenet, "--lr"), (localize, "--class-lr"), (localize, "--box-lr")]


@pytest.mark.parametrize("number", ["nan", "inf", "-1"])
@pytest.mark.parametrize(("script", "option"), RATES, ids=lambda part: getattr(part, "__name__", part))
def test_a_rate_is_a_finite_number_of_0_or_more(run, script, option, number):
    status, output = run(script, option, number)
    assert status == 2
    assert f"argument {option}: expected a finite number >= 0, got {number}" in output


@pytest.mark.parametrize("script", [train_cifar_resnet, train_imagenet, degradation, localize, transfer])
def test_a_seed_is_a_whole_number_of_0_or_more(run, script):
    status, output = run(script, "--seed", -1)
    assert status == 2
    assert "argument --seed: expected a whole number >= 0, got -1" in output
