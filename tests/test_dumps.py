"""Pass dumps: which files they hold, that they are stable and checked by a schema, and that a full disk changes nothing."""

from __future__ import annotations

import builtins
import json
import logging
import os
import re
import stat
import warnings
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from typer.testing import CliRunner, Result

from qcompiler import ConfigError, calibrate, convert_to_reference_fx, fuse_fx, prepare_fx, quantize
from qcompiler.cli import app
from qcompiler.debug import Dump, PassInstrument, Printer, dump
from qcompiler.debug.dump_record import SCHEMAS
from qcompiler.debug.read_dumps import compiles
from qcompiler.debug.sources import document_of
from qcompiler.ir.text import format_arg, format_graph
from qcompiler.passes import FUSE, OBSERVE
from tests.flow import randn, randomized

X = randn(1, 3, 8, 8)
TIMES = ("ms", "self_ms", "rss_delta")
PASSES = len((*FUSE, *OBSERVE))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.drop, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.drop(F.relu(self.bn(self.conv(x)))).mean((2, 3)))
        return result


def net() -> nn.Module:
    torch.manual_seed(0)
    return randomized(Net())


def compile_into(debug: Any) -> Any:
    return quantize(net(), [X], debug=debug, progress=False)


def folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir())


@pytest.fixture
def dumped(tmp_path: Path) -> Path:
    compile_into(tmp_path / "d")
    return tmp_path / "d"


def test_a_directory_a_compile(dumped: Path) -> None:
    prepare, convert = folders(dumped)
    assert (prepare.name, convert.name) == ("0001-prepare-Net", "0002-convert-Net")
    fixed = {"00-input.ir", "00-input.py", "99-final.ir", "99-final.py", "index.md", "passes.jsonl", "run.json", "graph.json"}
    names = {p.name for p in prepare.iterdir()}
    assert fixed <= names
    assert {"01-canonicalize.ir", "01-canonicalize.py", "01-canonicalize.diff", "06-fuse.diff"} <= names
    assert not any("separate_assignments" in name for name in names)  # it changed nothing
    assert {"freeze_qparams.ir", "lower.ir"} <= {p.name.partition("-")[2] for p in convert.iterdir()}
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o700 for p in (dumped, prepare, convert))
    prepared, converted = (json.loads((p / "run.json").read_text()) for p in (prepare, convert))
    assert prepared["id"] == converted["id"] and prepared["pid"] == os.getpid()
    assert "neither weights nor activations" in prepared["privacy"]
    compile_into(dumped)
    assert [p.name for p in folders(dumped)][2:] == ["0003-prepare-Net", "0004-convert-Net"]
    assert json.loads((dumped / "0003-prepare-Net" / "run.json").read_text())["id"] != prepared["id"]


def test_the_other_functions_dump_too(tmp_path: Path) -> None:
    fuse_fx(net(), (X,), debug=tmp_path)
    prepared = prepare_fx(net(), None, (X,))
    calibrate(prepared, [X])
    convert_to_reference_fx(prepared, debug=tmp_path)
    assert [p.name for p in folders(tmp_path)] == ["0001-fuse-Net", "0002-reference-Net"]


def test_the_index_lists_all_passes_in_order(dumped: Path) -> None:
    text = (dumped / "0001-prepare-Net" / "index.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| \d+ \| (\w+) \|", text, re.M)
    assert names == ["input", *(step.name for step in (*FUSE, *OBSERVE))]
    assert "| all |" in text and "The verifier took" in text


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "passes.jsonl").read_text(encoding="utf-8").splitlines()]


def schema(name: str) -> Any:
    data = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(data)
    return jsonschema.Draft202012Validator(data)


def test_records_follow_their_schemas(dumped: Path) -> None:
    for folder in folders(dumped):
        schema("run").validate(json.loads((folder / "run.json").read_text()))
        for line in lines(folder):
            schema("passes").validate(line)
    first = lines(folders(dumped)[0])[0]
    for broken in ({**first, "extra": 1}, {k: v for k, v in first.items() if k != "name"}, {**first, "seq": 0}, {**first, "added": [1]}):
        with pytest.raises(jsonschema.ValidationError):
            schema("passes").validate(broken)


def test_a_record_says_what_the_pass_did(dumped: Path) -> None:
    by_name = {line["name"]: line for folder in folders(dumped) for line in lines(folder)}
    fuse = by_name["fuse"]
    assert fuse["matches"] == 2 and fuse["ops"]["batch_norm"] == -1 and fuse["replaced"]["conv"] == ["bn", "relu"]
    assert {"bn", "relu"} <= set(fuse["removed"]) and fuse["nodes_after"] - fuse["nodes_before"] == sum(fuse["ops"].values())
    assert by_name["remove_identities"]["removed"] == ["drop"] and by_name["remove_identities"]["matches"] == 1
    assert not by_name["separate_assignments"]["changed"]
    assert by_name["fuse"]["self_ms"] <= by_name["fuse"]["ms"]
    assert [line["seq"] for line in lines(folders(dumped)[0])] == list(range(1, PASSES + 1))


def without_times(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.name == "passes.jsonl":
        return json.dumps([{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in text.splitlines()])
    if path.name == "graph.json":
        return re.sub(r'"ms":[0-9.e-]+', "", text)
    return text.split("\n## Time\n")[0] if path.name == "index.md" else text


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        compile_into(tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert files == sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*.*"))
    for file in files:
        if file.name != "run.json":  # ids and process ids
            assert without_times(tmp_path / "a" / file) == without_times(tmp_path / "b" / file), file
    everything = "".join(p.read_text(encoding="utf-8") for p in (tmp_path / "a").rglob("*.ir"))
    assert not re.search(r"0x[0-9a-f]{6,}", everything)


def test_long_constants_are_elided() -> None:
    assert format_arg(tuple(range(16))).count(",") == 15
    long = format_arg(tuple(range(17)))
    assert re.fullmatch(r"tuple\[17\] sha256 [0-9a-f]{12}", long) and long != format_arg(tuple(range(1, 18)))
    assert re.fullmatch(r"tensor f32\[2,3\] sha256 [0-9a-f]{12}", format_arg(torch.zeros(2, 3)))
    assert format_arg(torch.zeros(2, 3)) != format_arg(torch.ones(2, 3))
    nodes = [fx.Graph().placeholder("x") for _ in range(20)]
    assert format_arg(nodes).count("%x") == 20  # values are no constants
    assert format_arg(object()) == "<object>" and format_arg({3, 1, 2}) == "{1, 2, 3}"
    assert format_arg(test_long_constants_are_elided) == "test_long_constants_are_elided"


class Scales:
    """A pass that changes values alone."""

    name, required = "scales", False
    stage = FUSE[-1].stage

    def run(self, gm: fx.GraphModule, context: Any) -> bool:
        with torch.no_grad():
            gm.get_parameter("head.weight").mul_(2)
        return True


def test_new_values_are_a_change(tmp_path: Path) -> None:
    prepare_fx(net(), None, (X,), passes=(Scales(),), debug=tmp_path)
    line = next(line for line in lines(folders(tmp_path)[0]) if line["name"] == "scales")
    assert line["changed"] and line["constants_changed"] == ["head.weight"]
    assert "# new values: head.weight" in (folders(tmp_path)[0] / "07-scales.diff").read_text()


@pytest.mark.parametrize(("level", "suffixes"), [("index", set()), ("diff", {".diff"}), ("full", {".ir", ".py", ".diff"})])
def test_level_and_filter(tmp_path: Path, level: str, suffixes: set[str]) -> None:
    with dump(dir=tmp_path, passes="fuse*", level=level) as made:
        prepare_fx(net(), None, (X,))
    prepare_fx(net(), None, (X,))  # outside
    (folder,) = folders(tmp_path)
    assert made.paths == [folder]
    found = {p for p in folder.iterdir() if re.match(r"(?!00|99)\d\d-", p.name)}
    assert {p.suffix for p in found} == suffixes and all(p.name.startswith("06-fuse") for p in found)
    assert len(lines(folder)) == PASSES


def test_a_filter_that_matches_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prepare_fx(net(), None, (X,), debug=Dump(tmp_path, passes="fuze"))
    assert "No pass matches the filter 'fuze'" in caplog.text
    assert "No pass matches the filter 'fuze'" in (folders(tmp_path)[0] / "index.md").read_text(encoding="utf-8")


def test_the_path_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "qcompiler"):
        prepare_fx(net(), None, (X,), debug=tmp_path)
    assert sum(str(tmp_path / "0001-prepare-Net") in record.getMessage() for record in caplog.records) == 1


def test_no_dumps_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compile_into(None)
    assert not list(tmp_path.iterdir())


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILER_DEBUG", str(tmp_path / "env"))
    compile_into(None)
    assert [p.name for p in folders(tmp_path / "env")] == ["0001-prepare-Net", "0002-convert-Net"]
    compile_into(tmp_path / "argument")  # a directory that is given takes its place
    assert len(folders(tmp_path / "env")) == 2 and len(folders(tmp_path / "argument")) == 2


BAD = [("QCOMPILER_BISECT", "many"), ("QCOMPILER_BISECT", "-2"), ("QCOMPILER_PRINT", "all"), ("QCOMPILER_PRINT", "diffs:fuse"),
       ("QCOMPILER_REPRO_WEIGHTS", "yes"), ("QCOMPILER_DEBUG", __file__)]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_setting_is_one_clear_error(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        prepare_fx(net(), None, (X,))
    assert str(caught.value).startswith(f"{name}=") and caught.value.hint


@pytest.mark.parametrize("debug", [3, object(), PassInstrument, [None, 3.5]])
def test_a_bad_debug_argument(debug: Any) -> None:
    with pytest.raises(ConfigError, match="debug="):
        prepare_fx(net(), None, (X,), debug=debug)


def test_a_bad_dump(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="level"):
        Dump(tmp_path, level="all")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        prepare_fx(net(), None, (X,), debug=tmp_path / "file")


# ---- faults


class FailingOpen:
    """`open` that counts files opened for writing, and whose n-th such call fails as on a full disk, like all after it."""

    def __init__(self, number: int) -> None:
        self.real, self.number, self.count = builtins.open, number, 0

    def __call__(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if set(mode) & set("wa"):
            self.count += 1
            if self.count >= self.number:
                raise OSError(28, "No space left on device")
        return self.real(file, mode, *args, **kwargs)


def test_a_full_disk_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """At each write in turn."""

    def prepared_text(number: int) -> tuple[str, int]:
        with monkeypatch.context() as patch:
            patch.setattr(builtins, "open", opened := FailingOpen(number))
            prepared = prepare_fx(net(), None, (X,), debug=tmp_path / str(number))
        return format_graph(prepared.graph), opened.count

    wanted, writes = prepared_text(10**6)
    assert writes >= 30 and not caplog.records
    for number in range(1, writes + 1):
        caplog.clear()
        assert prepared_text(number)[0] == wanted
        (warned,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert "No space left" in warned.getMessage(), number


@pytest.mark.parametrize("call", ["mkdir", "iterdir"])
def test_a_directory_that_cannot_be_made(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(self: Path, *args: Any, **kwargs: Any) -> Any:
        raise OSError(30, "Read-only file system", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, call, refused)
        prepare_fx(net(), None, (X,), debug=tmp_path)
    assert [r.levelno for r in caplog.records].count(logging.WARNING) == 1 and "Read-only" in caplog.text


def test_a_full_disk_in_a_failure_keeps_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaks(Scales):
        def run(self, gm: fx.GraphModule, context: Any) -> bool:
            monkeypatch.setattr(builtins, "open", FailingOpen(2))
            raise KeyError("oops")

    with pytest.raises(Exception, match="oops") as caught:
        prepare_fx(net(), None, (X,), passes=(Breaks(),), debug=tmp_path)
    assert "reproducer:" not in str(caught.value)


# ---- printing


def printed(mode: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("QCOMPILER_PRINT", mode)
    prepare_fx(net(), None, (X,))
    out, err = capsys.readouterr()
    assert not out
    return err


def test_print_modes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    after = printed("after", capsys, monkeypatch)
    assert after.count("*** prepare Net: after ") == PASSES and after.count("return %") == PASSES
    changed = printed("changed", capsys, monkeypatch)
    assert "separate_assignments: no change" in changed and 0 < changed.count("return %") < PASSES
    diff = printed("diff:fuse", capsys, monkeypatch)
    assert diff.count("***") == 1 and re.search(r"^-%bn", diff, re.M) and re.search(r"^\+%conv: .*bounds=\(0, None\)", diff, re.M)
    assert "\x1b" not in diff


def test_colour_follows_no_color(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[32m" in printed("diff:fuse", capsys, monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in printed("diff:fuse", capsys, monkeypatch)


def test_a_print_filter_that_matches_nothing_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no pass matches 'fuze'; the passes are canonicalize" in printed("changed:fuze", capsys, monkeypatch)
    with pytest.raises(ValueError):
        Printer("sometimes")


# ---- qcompiler dumps


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["dumps", *map(str, arguments)], env={"COLUMNS": "120", "TERM": "dumb"})


def test_show(dumped: Path) -> None:
    result = call("show", dumped)
    assert result.exit_code == 0, result.output
    assert "0001-prepare-Net" in result.output and "0002-convert-Net" in result.output
    assert all(step.name in result.output for step in (*FUSE, *OBSERVE))
    assert "lower" in call("show", dumped / "0002-convert-Net").output


def test_diff(dumped: Path) -> None:
    result = call("diff", dumped, "remove_identities", "fuse")
    assert result.exit_code == 0 and "--- 0001-prepare-Net/05-remove_identities" in result.output and "-%bn" in result.output
    assert call("diff", dumped, "5", "06-fuse").output == result.output
    assert "are equal" in call("diff", dumped, "2", "separate_assignments").output
    across = call("diff", dumped, "input", "final").output
    assert "--- 0001-prepare-Net/00-input" in across and "+++ 0002-convert-Net/99-final" in across
    assert "--- 0002-convert-Net/00-input" in call("diff", dumped, "0002/input", "lower").output


def test_html(dumped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is made of the last prepare with its convert."""
    viz = __import__("importlib").import_module("qcompiler.viz")
    asked: list[Any] = []
    monkeypatch.setattr(viz, "save", lambda source, path: asked.append((source, path)), raising=False)
    compile_into(dumped)
    assert call("html", dumped, "--out", tmp_path / "page.html").exit_code == 0
    assert asked == [([dumped / "0003-prepare-Net", dumped / "0004-convert-Net"], tmp_path / "page.html")]


def test_the_folder_of_all_compiles_is_a_graph(dumped: Path) -> None:
    """It means its last model: the stages of prepare and convert in one document."""
    compile_into(dumped)
    both = document_of([dumped / "0003-prepare-Net", dumped / "0004-convert-Net"])
    assert document_of(dumped).to_data() == both.to_data()
    with pytest.raises(ConfigError, match="holds no dumps"):
        document_of(dumped.parent)


@pytest.mark.parametrize("arguments", [("show", "nowhere"), ("diff", "{d}", "fuze", "lower"), ("diff", "{d}", "0009/fuse", "lower")])
def test_mistakes_on_the_command_line(arguments: tuple[str, ...], dumped: Path) -> None:
    result = call(*(a.format(d=dumped) for a in arguments))
    assert result.exit_code == 1 and not isinstance(result.exception, ConfigError)


def test_damaged_dumps_are_named(dumped: Path) -> None:
    folder = folders(dumped)[0]
    (folder / "run.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        _ = compiles(folder)[0].run
    (folder / "passes.jsonl").write_text('{"seq": 1}\n{"se')  # written when the process was killed
    assert len(compiles(folder)[0].passes) == 1
    (dumped / "0003-prepare-Net").mkdir()  # one that has not begun
    with warnings.catch_warnings():
        assert len(compiles(dumped)) == 2


def test_a_dump_without_text_says_why(tmp_path: Path) -> None:
    prepare_fx(net(), None, (X,), debug=Dump(tmp_path, level="diff"))
    with pytest.raises(ConfigError, match="level"):
        compiles(tmp_path)[0].graph("fuse")
