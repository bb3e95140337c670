"""Runs from any CSV table: one's own, W&B's, MLflow's, or one that ``momo export`` wrote."""

from __future__ import annotations

import csv
import itertools
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from momo_cli.errors import UserError, did_you_mean
from momo_cli.interchange.writing import METRIC, PARAMETER
from momo_cli.report.numbers import count, names
from momo_cli.runs import Run

#: Words that stand for "no value" in a table.
NO_VALUE = frozenset(
    {"", "none", "null", "nan", "na", "n/a", "-", "inf", "+inf", "-inf", "infinity", "-infinity", "+infinity"}
)

#: A table with these columns is one of ours: its ``status`` and the other fields are read too.
OUR_COLUMNS = frozenset({"optimizer", "lr", "seed", "status", "objective", "initial"})

Row = dict[str, str]


def read_csv(
    path: str | Path,
    *,
    lr_col: str,
    optimizer_cols: Sequence[str],
    value_col: str,
    seed_col: str | None = None,
    epoch_col: str | None = None,
    where: Mapping[str, str] | None = None,
    initial: float | None = None,
) -> tuple[list[Run], list[str]]:
    """The runs of a table, and lines that say what was made of it.

    Args:
        path: The file; its first line names the columns. Commas, semicolons or tabs separate them.
        lr_col: Column of the learning rate. Rows without one above 0 are left out, and a line says so.
        optimizer_cols: Column of the optimizer's name; further ones become arguments in brackets.
        value_col: Column of the final value. An empty or non-finite one counts as a diverged run.
        seed_col: Column of the seed. Left out, runs that only the order tells apart count as seeds.
        epoch_col: Column of the epoch: of each run's rows the one with the last epoch counts.
        where: Only rows with these values in these columns.
        initial: The value before training (ℓ0).

    Raises:
        UserError: The file can't be used (exit code 1), or it has no such column or rows (2).
    """
    header, rows = _rows(path)
    asked = {"--lr-col": [lr_col], "--optimizer-col": optimizer_cols, "--value-col": [value_col],
             "--seed-col": [seed_col], "--epoch-col": [epoch_col], "--where": list(where or {})}  # fmt: skip
    for flag, columns in asked.items():
        for column in columns:
            if column is not None and column not in header:
                raise UserError(
                    f"{flag} {column}: {path} has no such column.{did_you_mean(column, header)}\n"
                    f"Its columns: {', '.join(header)}."
                )
    if not optimizer_cols:
        raise UserError(
            f"Which column names the optimizer? Give --optimizer-col.\nColumns of {path}: {', '.join(header)}."
        )
    for column, value in (where or {}).items():
        kept = [row for row in rows if _same(row[1][column], value)]
        if not kept:
            found = list(dict.fromkeys(row[column] for _, row in rows))
            shown = ", ".join(map(repr, found[:10])) + (" …" if len(found) > 10 else "")
            raise UserError(f"--where {column}={value} leaves no row of {path}.\nIn that column: {shown}.")
        rows = kept

    notes: list[str] = []
    ours = set(header) >= OUR_COLUMNS
    if ours and seed_col is None:
        seed_col = "seed"
    skipped = 0
    found_runs: dict[tuple[str, float, str], list[tuple[int, Row, float]]] = {}
    for line, row in rows:
        lr = _number(row[lr_col], path, line, lr_col)
        if lr is not None and lr < 0:
            raise UserError(
                f"{path}, line {line}: the learning rate {row[lr_col]} in the column {lr_col!r} is negative.", code=1
            )
        if lr is None or lr == 0:
            skipped += 1
            continue
        epoch = 0.0
        if epoch_col is not None:
            at = _number(row[epoch_col], path, line, epoch_col)
            epoch = -math.inf if at is None else at
        key = (_label(row, optimizer_cols), lr, row[seed_col] if seed_col is not None else "")
        found_runs.setdefault(key, []).append((line, row, epoch))
    if not found_runs:
        raise UserError(f"{path}: no row has a learning rate above 0 in the column {lr_col!r}.", code=1)
    if skipped:
        notes.append(f"{count(skipped, 'row')} without a learning rate above 0 left out.")

    # One list of rows a run: the rows of a key, taken apart where its epochs begin again.
    parts = {key: _runs_of(members, epoch_col is not None) for key, members in found_runs.items()}
    repeated = {key: runs for key, runs in parts.items() if len(runs) > 1}
    if repeated:
        notes += _about_repeats(
            repeated, header, rows, {lr_col, value_col, seed_col, epoch_col, *optimizer_cols}, seed_col, epoch_col
        )

    numbers, renamed = _seed_numbers([seed for _, _, seed in parts] if seed_col is not None else [])
    if renamed:
        notes.append(f"Seeds in the column {seed_col!r} are not whole numbers: numbered in file order.")
    taken: dict[tuple[str, float], set[int]] = {}
    for label, lr, seed in parts:
        taken.setdefault((label, lr), set()).add(numbers.get(seed, 0))
    result: list[tuple[int, Run]] = []
    for (label, lr, seed), runs in parts.items():
        for i, members in enumerate(runs):
            line, row, _ = max(members, key=lambda member: (member[2], member[0]))
            number = numbers.get(seed, 0)
            if i:  # a repeat: the next number that is free
                number = next(n for n in range(10**9) if n not in taken[label, lr])
                taken[label, lr].add(number)
            final = _number(row[value_col], path, line, value_col)
            run = Run(label, lr, number, "ok" if final is not None else "diverged", final, initial)
            if ours:
                _restore(run, row, path, line, value_col, initial)
            result.append((members[0][0], run))
    lost = sum(run.status == "diverged" for _, run in result)
    optimizers = len({run.optimizer for _, run in result})
    said = f"Read {count(len(result), 'run')} of {count(optimizers, 'optimizer')} from {Path(path).name}"
    notes.insert(0, said + (f"; {lost} without a finite {value_col} count as diverged." if lost and not ours else "."))
    if lost and not ours:
        notes += _about_states([row for _, row in rows], value_col, set(where or {}))
    return [run for _, run in sorted(result, key=lambda pair: pair[0])], notes


# ------------------------------------------------------------------------------------------------------------ pieces


def _rows(path: str | Path) -> tuple[list[str], list[tuple[int, Row]]]:
    """The header, and each row with its line number."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=first.count)
            reader = csv.reader(file, delimiter=delimiter)
            header = [name.strip() for name in next(reader, [])]
            rows = []
            for values in reader:
                if not any(value.strip() for value in values):
                    continue
                if len(values) != len(header):
                    raise UserError(
                        f"{path}, line {reader.line_num}: {count(len(values), 'value')}, but the first line names "
                        f"{count(len(header), 'column')}.",
                        code=1,
                    )
                rows.append((reader.line_num, {name: value.strip() for name, value in zip(header, values)}))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV table in UTF-8 ({error}).", code=1) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        raise UserError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}.", code=1) from None
    if not rows:
        raise UserError(
            f"{path}: no rows. The first line must name the columns, and each further line is one row.", code=1
        )
    twice = [name for name in dict.fromkeys(header) if header.count(name) > 1]
    if twice:
        raise UserError(f"{path}: the column {twice[0]!r} stands there twice.", code=1)
    return header, rows


def _number(text: str, path: str | Path, line: int, column: str) -> float | None:
    """A finite number, or None where the table has none."""
    if text.lower() in NO_VALUE:
        return None
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{path}, line {line}: {text!r} in the column {column!r} is not a number.", code=1) from None
    return value if math.isfinite(value) else None


def _same(text: str, value: str) -> bool:
    """
    >>> _same("0.10", "1e-1"), _same("cosine", "cosine"), _same("a", "b")
    (True, True, False)
    """
    if text == value.strip():
        return True
    try:
        return float(text) == float(value)
    except ValueError:
        return False


def _label(row: Row, columns: Sequence[str]) -> str:
    """The optimizer's label: the first column's value, the others as arguments.

    >>> _label({"name": "adamw", "weight_decay": "0.1", "beta": "none"}, ["name", "weight_decay", "beta"])
    'adamw(weight_decay=0.1)'
    """
    name, *others = columns
    arguments = [f"{column}={row[column]}" for column in others if row[column].lower() not in NO_VALUE]
    label = row[name] or "(none)"
    if arguments and label.endswith(")") and "(" in label:
        return f"{label[:-1]}, {', '.join(arguments)})"
    return f"{label}({', '.join(arguments)})" if arguments else label


def _runs_of(members: list[tuple[int, Row, float]], epochs: bool) -> list[list[tuple[int, Row, float]]]:
    """The rows of one optimizer, learning rate and seed, taken apart into runs.

    Without epochs every row is a run. With them the runs stand one after another (each begins at the first epoch
    again), or epoch by epoch (the n-th row of an epoch is the n-th run's).
    """
    if not epochs:
        return [[member] for member in members]
    in_turn = [[members[0]]]
    for before, member in itertools.pairwise(members):
        if member[2] <= before[2]:
            in_turn.append([])
        in_turn[-1].append(member)
    first = min(epoch for _, _, epoch in members)
    if len(in_turn) == sum(epoch == first for _, _, epoch in members):
        return in_turn
    by_occurrence: list[list[tuple[int, Row, float]]] = []
    seen: dict[float, int] = {}
    for member in members:
        n = seen[member[2]] = seen.get(member[2], -1) + 1
        if n == len(by_occurrence):
            by_occurrence.append([])
        by_occurrence[n].append(member)
    return by_occurrence


def _about_repeats(
    repeated: dict[tuple[str, float, str], list[list[tuple[int, Row, float]]]],
    header: list[str],
    rows: list[tuple[int, Row]],
    used: set[str | None],
    seed_col: str | None,
    epoch_col: str | None,
) -> list[str]:
    """What is said of runs that only their order tells apart, with the columns that could tell them apart."""
    most = max(map(len, repeated.values()))
    same = "optimizer, learning rate and seed" if seed_col else "optimizer and learning rate"
    notes = [f"Runs of the same {same} (up to {most}) count as seeds, in file order."]
    if epoch_col is None:
        guess = [
            name
            for name in header
            if name.lower() in ("epoch", "epochs", "step", "_step", "iteration") and name not in used
        ]
        if guess:
            notes.append(f"If they are the epochs of one run, name the column: --epoch-col {guess[0]}.")
    telling = []
    for column in header:
        if column in used or len({row[column] for _, row in rows}) > 20:
            continue
        constant = all(len({row[column] for _, row, _ in run}) == 1 for runs in repeated.values() for run in runs)
        differs = any(len({run[0][1][column] for run in runs}) > 1 for runs in repeated.values())
        if (
            constant
            and differs
            and not (epoch_col is None and column.lower() in ("epoch", "epochs", "step", "_step", "iteration"))
        ):
            telling.append(column)
    if telling:
        notes.append(
            f"They differ in {names(telling[:5])}: if that is a setting and not the seed, tell them apart with "
            f"--optimizer-col {telling[0]} or choose with --where {telling[0]}=…; if it is the seed, with --seed-col."
        )
    return notes


def _about_states(rows: list[Row], value_col: str, used: set[str]) -> list[str]:
    """What is said of rows without a value that a column such as W&B's ``State`` calls crashed: they count as diverged.

    >>> rows = [{"State": "finished", "loss": "1"}, {"State": "crashed", "loss": ""}]
    >>> _about_states(rows, "loss", set())
    ['Those with State crashed may not have diverged: leave them out with --where State=finished.']
    """
    for column in rows[0]:
        if column.lower() not in ("state", "status") or column in used:
            continue
        empty = [row[column] for row in rows if row[value_col].lower() in NO_VALUE]
        whole = [row[column] for row in rows if row[value_col].lower() not in NO_VALUE]
        other = [state for state in dict.fromkeys(empty) if state not in whole]
        if other and whole:
            usual = max(dict.fromkeys(whole), key=whole.count)
            return [
                f"Those with {column} {names(other, 'or')} may not have diverged: leave them out with "
                f"--where {column}={shlex.quote(usual)}."
            ]
    return []


def _seed_numbers(seeds: list[str]) -> tuple[dict[str, int], bool]:
    """Each seed as a whole number, and whether they had to be numbered.

    >>> _seed_numbers(["1", "2.0", "1"]), _seed_numbers(["b", "a"])
    (({'1': 1, '2.0': 2}, False), ({'b': 0, 'a': 1}, True))
    """
    distinct = list(dict.fromkeys(seeds))
    try:
        numbers = {seed: int(float(seed)) for seed in distinct}
        if all(float(seed) == number for seed, number in numbers.items()):
            return numbers, False
    except (ValueError, OverflowError):
        pass
    return {seed: i for i, seed in enumerate(distinct)}, True


def _restore(run: Run, row: Row, path: str | Path, line: int, value_col: str, initial: float | None) -> None:
    """The further fields of a table that ``momo export`` wrote."""
    if row["status"] in ("ok", "diverged", "failed", "pruned"):
        run.status = row["status"]  # type: ignore[assignment]
    if initial is None and value_col == "objective":
        run.initial = _number(row["initial"], path, line, "initial")
    for name in ("train_loss", "val_loss", "seconds", "capped"):
        if name in row and (value := _number(row[name], path, line, name)) is not None:
            setattr(run, name, value)
    if "steps" in row:
        run.steps = int(_number(row["steps"], path, line, "steps") or 0)
    run.error = row.get("error") or None
    for column, text in row.items():
        for prefix, target in ((METRIC, run.metrics), (PARAMETER, run.params)):
            if column.startswith(prefix) and (value := _number(text, path, line, column)) is not None:
                target[column.removeprefix(prefix)] = value
