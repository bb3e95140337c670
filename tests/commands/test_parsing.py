"""What is typed, whatever it is, is understood or refused: never another exception, never much memory or time."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest

from momo_cli.asked import Options
from momo_cli.commands.options import SearchOptions, arguments, conditions
from momo_cli.errors import UserError
from momo_cli.plan import parse_lrs, parse_optimizers
from momo_cli.plan.learning_rates import parse_range
from momo_cli.plan.optimizers import OptimizerSpec
from momo_cli.store import Store
from momo_cli.task.loading import find_task
from momo_cli.user_code import UserCodeError

WORDS = [
    "momo",
    "adam",
    "adamw",
    "sgd-m",
    "muon",
    "torch.optim:Adam",
    "math:pi",
    "math",
    "cosine",
    "wsd",
    "warmup",
    "lr",
    "weight_decay",
    "betas",
    "width",
    "build",
    "mymodule",
    "digits-mlp",
    "sqlite:///",
    "postgresql://",
    "redis",
    "grpc://",
    "journal.log",
    "momo.db",
    "0.1",
    "1e-4",
    "1e999",
    "nan",
    "inf",
    "-1",
    "0",
    "9999999999999999999",
    "True",
    "None",
]
SIGNS = list("()[]{}=:,+-*./\\'\" \t\n\0²₅٣é😀") + ["\ud800"]
TEXTS = st.lists(st.sampled_from(WORDS) | st.sampled_from(SIGNS) | st.text(max_size=4), max_size=12).map("".join)
ADAM = [OptimizerSpec.parse("adam"), OptimizerSpec.parse("momo")]


def optimizers(text):
    for spec in parse_optimizers([text]):
        spec.check(1e-3)


def search(text):
    given = SearchOptions(trials=3, tune=[text], lr_range=text, sampler="tpe").given()
    Options(**given).search()


STARTS = {"--vary": "width=", "--set": "width=", "--tune": "weight_decay=", "--where": "lr=", "--optimizer": "adam("}

# A further option with a grammar of its own is one more line.
PARSERS = {
    "--optimizer": optimizers,
    "--lrs": lambda text: parse_lrs([text], ADAM),
    "--lr-range": lambda text: parse_range(text, "--lr-range "),
    "--set": lambda text: arguments([text]),
    "--vary": lambda text: Options(vary=text).varied(),
    "--where": lambda text: conditions([text]),
    "--tune": search,
    "--storage": lambda text: Store(text).studies() if text.startswith("momo.db") else Store(text),
    "TASK": find_task,
}


@pytest.mark.parametrize("flag", PARSERS)
@hypothesis.settings(
    max_examples=hypothesis.settings().max_examples * 9 // 4,  # 20,000 of all flags with -m explore
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(text=TEXTS, more=st.booleans())
def test_any_text_is_understood_or_refused_in_three_lines(folder, flag, text, more):
    typed = STARTS.get(flag, "") + text if more else text
    try:
        PARSERS[flag](typed)
    except UserError as error:
        assert error.code in (1, 2) and str(error)
        assert len(str(error).replace(typed, "").replace(text, "").splitlines()) <= 3
    except UserCodeError:
        assert ":" in text  # a module was imported, as asked
