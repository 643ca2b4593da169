from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from messages import told
from vopd.run.publish import data_notes

Train = Callable[..., int]


class FakeHub:
    """In place of huggingface_hub.HfApi: remembers what it was told."""

    calls: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012
    fails: Exception | None = None

    def __init__(self, token: str | None = None) -> None:
        pass

    def create_repo(self, repo_id: str, **settings: Any) -> Any:
        if self.fails is not None:
            raise self.fails
        self.calls.append(("create", {"repo_id": repo_id, **settings}))
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, **settings: Any) -> None:
        files = sorted(path.name for path in Path(settings["folder_path"]).iterdir())
        self.calls.append(("upload", {**settings, "files": files}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    import huggingface_hub

    monkeypatch.setattr(FakeHub, "calls", [])
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    return FakeHub


def test_nothing_is_uploaded_without_the_flag(train: Train, hub: type[FakeHub]) -> None:
    assert train("--hub_model_id", "me/mine") == 0
    assert hub.calls == []


def test_the_model_alone_goes_up_and_is_private(
    train: Train, hub: type[FakeHub], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--push_to_hub", "true", "--hub_model_id", "me/mine") == 0
    (_, made), (_, sent) = hub.calls
    assert made == {"repo_id": "me/mine", "private": True, "exist_ok": True}
    assert sent["folder_path"] == str(run / "model")
    assert "model.safetensors" in sent["files"] and not any("training_args" in name for name in sent["files"])
    assert "uploaded to https://huggingface.co/me/mine" in capsys.readouterr().out
    assert "push_to_hub: true  # command line" in (run / "resolved_config.yaml").read_text()


def test_a_public_repository_on_request(train: Train, hub: type[FakeHub]) -> None:
    assert train("--push_to_hub", "true", "--hub_model_id", "me/mine", "--hub_private_repo", "false") == 0
    assert hub.calls[0][1]["private"] is False


def test_a_failed_upload_loses_nothing(
    train: Train, hub: type[FakeHub], run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(FakeHub, "fails", OSError("401 unauthorized"))
    assert train("--push_to_hub", "true", "--hub_model_id", "me/mine") == 1
    assert told("'me/mine' ... 401 unauthorized ... hf upload", capsys.readouterr().err)
    assert (run / "model" / "model.safetensors").is_file()


def test_a_place_is_needed(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--push_to_hub", "true") == 2
    assert "push_to_hub needs hub_model_id" in capsys.readouterr().err


class TestCard:
    def test_tells_models_data_estimator_seed_and_versions(self, train: Train, run: Path, tmp_path: Path) -> None:
        assert train("--estimator", "vopd_top_k", "--loss_top_k", "3", "--seed", "5") == 0
        card = (run / "model" / "README.md").read_text()
        assert re.search(r"\| data \| 16 prompts from prompts.jsonl \(sha256 [0-9a-f]{12}\) \|", card)
        assert "| estimator | vopd_top_k, k = 3 |" in card and "| seed | 5 |" in card
        assert "| student | student |" in card and "| teacher | teacher |" in card
        assert re.search(r"\| versions \| vopd [\d.]+, torch .*trl 1\.16", card)
        assert str(tmp_path) not in card and "## Results" not in card

    def test_tells_results_where_they_were_measured(self, train: Train, run: Path) -> None:
        assert train("--eval_task", "reasoning_gym:chain_sum", "--eval_count", "3") == 0
        card = (run / "model" / "README.md").read_text()
        assert "## Results" in card and "- chain_sum, trained model: 0.0 % [0.0, 0.0] (3 problems" in card
        assert "- trained - start: +0.0 points" in card

    def test_data_sets_of_the_hub_are_linked(self) -> None:
        notes = data_notes([{"source": "me/set", "version": "abc", "prompts": 3}])
        assert notes == {"data": ["3 prompts from me/set (abc)"], "datasets": ["me/set"]}

    @staticmethod
    def card(**facts: Any) -> Any:
        from vopd.training.saving.card import model_card

        models = {"student": "a", "teachers": {"default": ("b", None)}, "adapter": False}
        return model_card({"name": "c", "settings": {"seed": 1}, "tags": ["t"], **models, **facts})

    def test_a_source_cannot_break_the_table(self) -> None:
        assert "| data | x \\| y z |" in self.card(data=["x | y\nz"]).text

    def test_the_metadata_are_read_as_they_were_given(self, tmp_path: Path) -> None:
        """Plain in YAML, "no" would be false, "1.0" a number, and what follows " #" or ": " something else."""
        given = {"student": "me/model", "datasets": ["me/set: new", "1.0", "2026-01-01"], "tags": ["no", "a #b", "- c"]}
        self.card(**given, adapter=True).save(tmp_path / "README.md")
        metadata = ModelCard.load(tmp_path / "README.md").data.to_dict()
        assert metadata == {
            "library_name": "peft", "base_model": "me/model", "datasets": given["datasets"], "tags": given["tags"],
        }  # fmt: skip

    def test_a_local_student_and_unnamed_data_sets_are_no_metadata(self, tmp_path: Path) -> None:
        metadata = self.card(student=str(tmp_path), datasets=[]).data.to_dict()
        assert metadata == {"library_name": "transformers", "tags": ["t"]}


class TestTrackers:
    def test_metrics_reach_a_tracker_in_groups(
        self, train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        trackio = pytest.importorskip("trackio")
        logged: list[dict[str, Any]] = []
        monkeypatch.setattr(trackio, "init", lambda **settings: None)
        monkeypatch.setattr(trackio, "log", lambda metrics, **settings: logged.append(metrics))
        monkeypatch.setattr(trackio, "finish", lambda: None)
        monkeypatch.setattr(trackio, "config", {}, raising=False)
        assert train("--report_to", "trackio", "--estimator", "vopd") == 0
        names = set().union(*logged)
        assert {"train/loss", "train/reverse_kl", "train/variance/optimal", "train/seconds/rollout"} <= names
        groups = {name.split("/")[1] for name in names if name.count("/") > 1}
        assert {"advantage", "reward", "seconds", "variance"} <= groups
