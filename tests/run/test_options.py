from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from messages import says
from vopd.errors import ConfigurationError, Faults
from vopd.run import options as module
from vopd.run.option_files import CHOSEN_HERE, to_yaml
from vopd.run.options import convert, needed, options_of, read_options, setting


@dataclass
class Example:
    model: str = needed("which model")
    learning_rate: float = setting(1e-3, "the step")
    steps: int | None = setting(None, "how many")
    report_to: str | list[str] | None = setting("none", "where to")
    names: list[str] = setting(["a"], "some names")
    weights: list[float] | None = setting(None, "some numbers")
    extra: dict[str, Any] | str | None = setting(None, "more")
    loud: bool = setting(False, "or not")
    hidden: int = field(default=3, init=False)

    def __post_init__(self) -> None:
        if self.learning_rate < 0:
            raise ValueError("learning_rate must not be negative\nand more text")


OPTIONS = options_of(Example)


def parse(*given: Any) -> Any:
    """`vopd.run.options.parse`, raising what is wrong."""
    faults = Faults()
    settings = module.parse(*given, faults)
    faults.tell()
    return settings


def read(*arguments: str) -> Any:
    return parse("try", "An example.", OPTIONS, ["--model", "m", *arguments])


class TestPrecedence:
    def test_command_line_over_file_over_default(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text("learning_rate: 1e-4\nsteps: 7\n")
        settings = read("--config", str(path), "--steps", "9")
        assert (settings.values["learning_rate"], settings.values["steps"]) == (1e-4, 9)
        assert settings.origins["learning_rate"] == "mine.yaml"
        assert settings.origins["steps"] == "command line"
        assert settings.origins["loud"] == "default"

    def test_a_required_option_may_come_from_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text("model: from-file\n")
        assert parse("try", "", OPTIONS, ["--config", str(path)]).values["model"] == "from-file"


class TestSpelling:
    @pytest.mark.parametrize(
        "arguments",
        [["--learning_rate", "0.5"], ["--learning-rate", "0.5"], ["--learning_rate=0.5"], ["--learning-rate=0.5"]],
    )
    def test_dashes_underscores_and_equals_are_the_same(self, arguments: list[str]) -> None:
        assert read(*arguments).values["learning_rate"] == 0.5

    def test_a_value_may_hold_dashes_and_equals(self) -> None:
        assert read("--model=a-b=c").values["model"] == "a-b=c"

    def test_negative_numbers(self) -> None:
        assert read("--steps", "-1").values["steps"] == -1

    def test_abbreviations_are_not_guessed(self) -> None:
        with pytest.raises(ConfigurationError, match=says("'learning'")):
            read("--learning", "0.5")


class TestErrors:
    def test_unknown_key_suggests_the_nearest(self) -> None:
        with pytest.raises(ConfigurationError, match=says("'lerning_rate' ... 'learning_rate'")):
            read("--lerning-rate", "0.5")

    def test_unknown_key_in_a_file_names_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text("step: 5\n")
        with pytest.raises(ConfigurationError, match=says("mine.yaml ... 'step' ... 'steps'")):
            read("--config", str(path))

    def test_missing_required(self) -> None:
        with pytest.raises(ConfigurationError, match=says("vopd try ... --model")):
            parse("try", "", OPTIONS, [])

    def test_key_without_value(self) -> None:
        with pytest.raises(ConfigurationError, match=says("--steps")):
            read("--steps")

    def test_stray_word(self) -> None:
        with pytest.raises(ConfigurationError, match=says("'word'")):
            read("word")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("steps: [1]", "mine.yaml ... steps ... whole number ... none ... [1]"),
            ("steps: soon", "steps ... whole number ... none ... 'soon'"),
            ("weights: [1, abc]", "mine.yaml ... weights ... number ... 'abc'"),
            ("weights: a", "weights ... number ... 'a'"),
            ("model: 5", "model ... text ... 5"),
            ("loud: 1", "loud ... true ... false ... 1"),
            ("- a", "mine.yaml ... key: value"),
            ("a: b: c", "line 1 ... YAML"),
        ],
    )
    def test_wrong_values_in_a_file(self, tmp_path: Path, content: str, message: str) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text(content)
        with pytest.raises(ConfigurationError, match=says(message)):
            read("--config", str(path))

    def test_numbers_are_numbers_at_every_depth_and_commits_are_text(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text("learning_rate: 2e-3\nmodel: 1.10\nextra: {a: 1e-5, b: [-2.5E3, 1.e2], c: 12e45, d: '1e-5'}\n")
        values = parse("try", "", OPTIONS, ["--config", str(path)]).values
        assert (values["learning_rate"], values["model"]) == (2e-3, "1.10")
        assert values["extra"] == {"a": 1e-5, "b": [-2500.0, 100.0], "c": "12e45", "d": "1e-5"}
        assert read("--extra", "{a: 1e-5, b: no}").values["extra"] == {"a": 1e-5, "b": False}
        path.write_text("learning_rate: .inf\n")
        assert read("--config", str(path)).values["learning_rate"] == float("inf")

    @pytest.mark.parametrize("text", ["5e-1,2", "[0.50, 2]", "[5e-1, '2']"])
    def test_entries_of_a_list_are_converted(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "mine.yaml"
        path.write_text(f"weights: {text}\n")
        assert read("--weights", text).values["weights"] == [0.5, 2]
        assert read("--config", str(path)).values["weights"] == [0.5, 2]

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=says("none.yaml")):
            read("--config", str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("1e-5", float, 1e-5),
        ("500", float, 500),
        ("7", int | None, 7),
        ("none", int | None, None),
        ("True", bool, True),
        ("no", bool | None, False),
        ("a, b", list[str], ["a", "b"]),
        ("[a, b]", list[str] | None, ["a", "b"]),
        ("{a: 1}", dict | str | None, {"a": 1}),
        ("auto", int | str | None, "auto"),
        ("5", str, "5"),
    ],
)
def test_convert(text: str, kind: Any, value: Any) -> None:
    found = convert(text, kind, "x")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(("text", "kind"), [("soon", int), ("1.5", int), ("maybe", bool), ("{a", dict), ("[1", list)])
def test_convert_refuses(text: str, kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="x must be"):
        convert(text, kind, "x")


def test_the_text_of_a_default_is_the_default() -> None:
    """report_to=None and report_to="none" are different things."""
    assert read("--report_to", "none").values["report_to"] == "none"
    assert read("--steps", "none").values["steps"] is None


class TestBuild:
    def test_leaves_defaults_to_the_dataclass(self) -> None:
        built = read("--steps", "4").build(Example)
        assert (built.model, built.steps, built.names, built.hidden) == ("m", 4, ["a"], 3)

    def test_reading_the_options_of_one_dataclass_makes_it(self) -> None:
        assert read_options(Example, "try", "", ["--model", "m", "--loud"]) == Example("m", loud=True)

    def test_fixed_values_win(self) -> None:
        assert read("--steps", "4").build(Example, steps=5).steps == 5

    def test_errors_of_the_dataclass_become_one_line(self) -> None:
        with pytest.raises(ConfigurationError) as caught:
            read("--learning_rate=-1").build(Example)
        assert str(caught.value) == "learning_rate must not be negative"


class TestYaml:
    def test_is_a_file_that_reads_back(self, tmp_path: Path) -> None:
        settings = read("--extra", "{a: [1, 2]}", "--names", "x,y", "--learning-rate", "1e-5")
        path = tmp_path / "resolved.yaml"
        path.write_text(to_yaml(settings.values, settings.origins))
        assert parse("try", "", OPTIONS, ["--config", str(path)]).values == settings.values

    def test_one_line_a_setting_with_its_origin_given_ones_first(self) -> None:
        settings = read("--extra", "{" + ", ".join(f"key{n}: {n}" for n in range(60)) + "}")
        lines = to_yaml(settings.values, {**settings.origins, "steps": CHOSEN_HERE}).splitlines()
        assert len(lines) == len(OPTIONS)
        assert lines[0].startswith("extra: {key0: 0") and lines[0].endswith("# command line")
        assert lines[1] == "model: m  # command line"
        assert lines[2] == f"steps: null  # {CHOSEN_HERE}"
        assert "loud: false  # default" in lines

    @pytest.mark.parametrize("name", ["hub_token", "push_to_hub_token", "api_key", "password"])
    def test_secrets_are_left_out(self, name: str) -> None:
        values = {name: "s3cret", "extra": {"token": "s3cret"}, "url": "https://me:s3cret@host/v1"}
        assert "s3cret" not in to_yaml(values, dict.fromkeys(values, "command line"))


class TestHelp:
    def test_lists_options_with_defaults_and_ends(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            parse("try", "An example.", OPTIONS, ["--help"])
        text = capsys.readouterr().out
        assert ended.value.code == 0
        assert "An example." in text and "(required) which model" in text and "the step [0.001]" in text

    def test_shows_only_and_in_the_order_of_shown(self, capsys: pytest.CaptureFixture[str]) -> None:
        options = options_of(Example, group="some", shown=["steps", "learning_rate"])
        with pytest.raises(SystemExit):
            parse("try", "", options, ["--help"])
        text = capsys.readouterr().out
        assert "--names" not in text and text.index("--steps") < text.index("--learning_rate")
        assert parse("try", "", options, ["--model", "m", "--names", "b"]).values["names"] == ["b"]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("~/stud", "HOME/stud"),
        ("mine=~/a.jsonl", "mine=HOME/a.jsonl"),
        (["~/a", "b"], ["HOME/a", "b"]),
        ({"one": "~/a"}, {"one": "HOME/a"}),
        ("about ~/a", "about ~/a"),
        ("a~/b", "a~/b"),
    ],
)
def test_a_path_may_begin_at_the_home_folder(given: Any, found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "HOME")
    assert parse("try", "", OPTIONS, ["--model", "m", "--extra", f"{{x: {given!r}}}"]).values["extra"] == {"x": found}
