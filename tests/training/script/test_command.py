"""What a command's words become, and what is refused before any run starts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momo_cli.errors import UserError
from momo_cli.plan import OptimizerSpec, RunSpec
from momo_cli.training.script import Command, Reading


def spec(lr=0.1, label="adam", seed=0, **params):
    return RunSpec(OptimizerSpec.parse(label), lr, seed, tuple(params.items()))


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_python_reads_back_the_same_learning_rate(tmp_path_factory, lr):
    folder = tmp_path_factory.getbasetemp()
    words, environment = Command(("--lr={lr}",)).filled(spec(lr), folder)
    assert float(words[0].removeprefix("--lr=")) == lr == float(environment["MOMO_LR"])


def test_every_placeholder_and_its_variable(tmp_path):
    command = Command.parse(
        ["train", "{lr}|{optimizer}|{seed}|{steps}|{epochs}|{dir}|{width}|{decay}", "{{a: {lr}}}"],
        arguments=(("width", 64),),
        steps=7,
        epochs=2.0,
    )
    words, environment = command.filled(spec(1e-5, "adamw(betas=(0.9, 0.95))", 3, decay=0.25), tmp_path)
    expected = ["1e-05", "adamw(betas=(0.9, 0.95))", "3", "7", "2", str(tmp_path), "64", "0.25"]
    assert words == ["train", "|".join(expected), "{a: 1e-05}"]
    names = ["LR", "OPTIMIZER", "SEED", "STEPS", "EPOCHS", "DIR", "SET_width", "SET_decay"]
    assert environment == {f"MOMO_{name}": value for name, value in zip(names, expected)}


def test_one_argument_is_split_as_a_shell_does_and_values_are_not(tmp_path):
    command = Command.parse(["python 'my train.py' --name {optimizer} --lr {lr}"])
    words, _ = command.filled(spec(label="two words"), tmp_path)
    assert words == ["python", "my train.py", "--name", "two words", "--lr", "0.1"]
    assert Command.parse(["python", "my train.py"]).words == ("python", "my train.py")


@pytest.mark.parametrize(
    ("words", "fields", "said"),
    [
        (["python", "t.py"], {}, "holds no {lr}"),
        (["python", "t.py", "--lr", "{lr}"], {}, "holds no {optimizer}"),
        (["python", "t.py", "{lr}{optimizer}{sede}"], {}, "Did you mean 'seed'?"),
        (["python", "t.py", "{lr:.3f}"], {}, "{lr:.3f} in"),
        (["python", "t.py", "{lr}{optimizer}", '{"a": 1}'], {}, "stand for braces"),
        (["python", "t.py", "{lr}{optimizer}", "{"], {}, "stands alone"),
        (["python", "t.py", "{lr}{optimizer}{steps}"], {}, "add --steps N"),
        (["python", "t.py", "{lr}{optimizer}"], {"steps": 5}, "write {steps} in the command"),
        (["python", "t.py", "{lr}{optimizer}"], {"arguments": (("width", 8),)}, "write {width} in the command"),
        (["pyhton-there-is-none", "{lr}{optimizer}"], {}, "no program"),
        (["python 't.py"], {}, "can't be split"),
        ([], {}, "no command"),
    ],
)
def test_refused_before_any_run(words, fields, said):
    with pytest.raises(UserError) as error:
        Command.parse(words, **fields).check(["adam", "sgd"])
    assert said in str(error.value) and len(str(error.value).splitlines()) <= 3


def test_a_source_that_reads_the_environment_needs_no_placeholder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("import options")
    (tmp_path / "options.py").write_text("# MOMO_LR MOMO_STEPS MOMO_SET_width\n")
    command = Command.parse(["python", "train.py"], arguments=(("width", 8),), steps=5)
    command.check(["adam"])
    with pytest.raises(UserError, match="MOMO_OPTIMIZER"):
        command.check(["adam", "sgd"])
    (tmp_path / "options.py").write_text("# MOMO_LR MOMO_STEPS MOMO_SET_width MOMO_OPTIMIZER\n")
    command.check(["adam", "sgd"])


@pytest.mark.parametrize(
    "words", [["python", "a/train.py", "--config=b.yaml", "{lr}"], ["python -m a.train --c b.yaml {lr}"]]
)
def test_fingerprint_is_of_the_words_and_of_every_file_named(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    for name in ("a/train.py", "a/model.py", "b.yaml", "other.py"):
        (tmp_path / name).write_text("import model" if name == "a/train.py" else "x = 1")
    command = Command.parse(words)
    seen = {command.fingerprint(), Command.parse([*words[0].split(), *words[1:], "x"]).fingerprint()}
    (tmp_path / "other.py").write_text("x = 2")
    assert command.fingerprint() in seen
    for name in ("a/train.py", "a/model.py", "b.yaml"):
        with (tmp_path / name).open("a") as file:
            file.write("\ny = 2")
        seen.add(command.fingerprint())
    assert len(seen) == 5


@pytest.mark.parametrize("pattern", ["(", "loss (.*)", r"(?P<step>\d+)", r"(?P<val>\d+)"])
def test_patterns_that_read_nothing(pattern):
    with pytest.raises(UserError, match="--read"):
        Reading(pattern).check()
