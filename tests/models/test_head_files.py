"""The output head read alone, and log-probabilities with one layer in memory, against the whole model."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf  # here, or its log would go to what captures one test
from safetensors.torch import load_file, save_file

from messages import says
from vopd.errors import MismatchError
from vopd.kernels import Head
from vopd.models import load_model, read_head
from vopd.models.head_files import load_head
from vopd.models.layer_by_layer import NotComparable, logprobs_from_files

IDS, START = [5, 6, 7, 8, 9, 10, 11, 12], 3
ROWS, WIDTH = 96, 32
SIZES: dict[str, Any] = {
    "vocab_size": ROWS, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": None,
}  # fmt: skip


def build(name: str, ending: str = "ForCausalLM", config: str = "Config", **settings: Any) -> Any:
    made = getattr(tf, name + config)(**SIZES | settings)
    return getattr(tf, name + ending)(made)


def with_images() -> Any:
    """A Gemma 3 for text and images, whose weights are saved under other names than its text model has."""
    vision = tf.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = tf.Gemma3TextConfig(**SIZES)
    ids = {"image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92}
    config = tf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1, **ids)
    return tf.Gemma3ForConditionalGeneration(config)


def text_of_larger() -> Any:
    """A Qwen 3.5 for text and images, of which only the text model is loaded."""
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16}
    text = tf.Qwen3_5TextConfig(**SIZES | linear | {"num_hidden_layers": 4, "linear_value_head_dim": 16})
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": WIDTH}
    return tf.Qwen3_5ForConditionalGeneration(tf.Qwen3_5Config(text_config=text, vision_config=vision))


FAMILIES: dict[str, Callable[[], Any]] = {
    "Qwen 3": partial(build, "Qwen3", tie_word_embeddings=False),
    "Qwen 3, tied": partial(build, "Qwen3", tie_word_embeddings=True),
    "Qwen 3.5, text": text_of_larger,
    "Qwen 3, experts": partial(build, "Qwen3Moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    "Llama": partial(build, "Llama"),
    "Gemma 2": partial(build, "Gemma2", final_logit_softcapping=5.0),
    "Gemma 3, text": partial(build, "Gemma3", config="TextConfig"),
    "Gemma 3": with_images,
    "Granite": partial(build, "Granite", logits_scaling=4.0),
    "Cohere": partial(build, "Cohere", logit_scale=0.25),
    "Phi": partial(build, "Phi"),
    "GPT-2": partial(build, "GPT2", "LMHeadModel"),
    "Pythia": partial(build, "GPTNeoX"),
    "OPT": partial(build, "OPT", ffn_dim=48, word_embed_proj_dim=16),
    "Falcon-H1": partial(
        build, "FalconH1", lm_head_multiplier=0.5, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8,
        mamba_n_groups=1, mamba_chunk_size=16,
    ),
    "gpt-oss": partial(build, "GptOss", num_local_experts=4, num_experts_per_tok=2),
}  # fmt: skip


def save(model: Any, folder: Path) -> Path:
    """Save a model with weights far from uniform, biases too, in bfloat16."""
    torch.manual_seed(0)
    for weight in model.parameters():
        weight.data.add_(torch.randn_like(weight) * 0.2)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def same(head: Head, other: Head) -> bool:
    biases = [head.bias, other.bias]
    equal = biases == [None, None] or (None not in biases and torch.equal(*biases))
    return (
        equal and torch.equal(head.weight, other.weight) and (head.scale, head.softcap) == (other.scale, other.softcap)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_both_are_those_of_the_whole_model(
    family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(save(FAMILIES[family](), tmp_path))
    head, expected = load_head(tmp_path), read_head(model, "teacher")
    assert same(head, expected) and head.weight.dtype == torch.bfloat16 and not head.weight.requires_grad
    with torch.no_grad():
        logprobs = model(torch.tensor([IDS])).logits.float().log_softmax(-1)[0, START - 1 : -1]
    capfd.readouterr()
    caplog.clear()
    found = logprobs_from_files(tmp_path, IDS, START)
    assert torch.equal(found, logprobs.gather(-1, torch.tensor(IDS[START:])[:, None])[:, 0])
    assert capfd.readouterr() == ("", "") and not caplog.records


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(FAMILIES["Qwen 3"](), tmp_path_factory.mktemp("models") / "untied")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(FAMILIES["Qwen 3, tied"](), tmp_path_factory.mktemp("models") / "tied")


@pytest.fixture(scope="module")
def parts(untied: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untied model in several files."""
    folder = tmp_path_factory.mktemp("models") / "parts"
    load_model(untied).save_pretrained(folder, max_shard_size="8KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


def file_of_head(folder: Path) -> str:
    name: str = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]["lm_head.weight"]
    return name


@pytest.fixture
def rewritten(tmp_path: Path) -> Callable[..., Path]:
    """rewritten(folder, without=[...], name=tensor, ...): a copy with other weights in its only file."""

    def rewrite(folder: Path, without: tuple[str, ...] = (), **given: torch.Tensor) -> Path:
        copied = Path(shutil.copytree(folder, tmp_path / "rewritten"))
        kept = {name: value for name, value in load_file(copied / WEIGHTS).items() if name not in without}
        save_file(kept | given, copied / WEIGHTS, metadata={"format": "pt"})
        return copied

    return rewrite


WEIGHTS, HEAD, EMBEDDING = "model.safetensors", "lm_head.weight", "model.embed_tokens.weight"


class TestTies:
    """Which of two weights is the head is as transformers decides."""

    @pytest.mark.parametrize("change", [0.0, 1.0])
    def test_both_are_saved(self, change: float, tied: Path, rewritten: Callable[..., Path]) -> None:
        folder = rewritten(tied, **{HEAD: load_file(tied / WEIGHTS)[EMBEDDING] + change})
        assert same(load_head(folder), read_head(load_model(folder), "teacher"))
        assert torch.equal(load_head(folder).weight, load_file(folder / WEIGHTS)[HEAD])

    def test_only_that_of_the_head_is_saved(self, tied: Path, rewritten: Callable[..., Path]) -> None:
        folder = rewritten(tied, (EMBEDDING,), **{HEAD: load_file(tied / WEIGHTS)[EMBEDDING]})
        assert same(load_head(folder), load_head(tied))
        assert same(load_head(folder), read_head(load_model(folder), "teacher"))
        with pytest.raises(NotComparable, match=says("layers ... 'model.embed_tokens.weight'")):
            logprobs_from_files(folder, IDS, START)


class TestNames:
    @pytest.mark.parametrize("name", ["language_model.model.embed_tokens.weight", "embed_tokens.weight"])
    def test_the_embedding_in_a_larger_model(self, name: str, tied: Path, rewritten: Callable[..., Path]) -> None:
        embedding = load_file(tied / WEIGHTS)[EMBEDDING]
        folder = rewritten(tied, (EMBEDDING,), **{name: embedding, "model.layers.2.embed_tokens.weight": embedding + 1})
        assert torch.equal(load_head(folder).weight, embedding)

    def test_two_that_may_be_it(self, tied: Path, rewritten: Callable[..., Path]) -> None:
        embedding = load_file(tied / WEIGHTS)[EMBEDDING]
        other = {"talker.embed_tokens.weight": embedding[:4].clone(), "thinker.embed_tokens.weight": embedding}
        folder = rewritten(tied, (EMBEDDING,), **other)
        assert torch.equal(load_head(folder).weight, embedding)
        shutil.rmtree(folder)
        folder = rewritten(tied, (EMBEDDING,), **other | {"talker.embed_tokens.weight": embedding + 1})
        with pytest.raises(MismatchError, match=says("talker.embed_tokens.weight ... thinker.embed_tokens.weight")):
            load_head(folder)


class TestAFewFiles:
    def test_only_the_one_with_the_head_is_opened(self, parts: Path, untied: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(parts, tmp_path / "model"))
        for path in folder.glob("*.safetensors"):
            if path.name != file_of_head(folder):
                path.unlink()
        assert same(load_head(folder), load_head(untied))
        with pytest.raises(NotComparable, match=says(f"'{folder}' ... copy or download it again")):
            logprobs_from_files(folder, IDS, START)
        (folder / file_of_head(folder)).unlink()
        with pytest.raises(MismatchError, match=says(f"{file_of_head(folder)} ... '{folder}'")):
            load_head(folder)

    def test_all_of_them(self, parts: Path, untied: Path) -> None:
        assert torch.equal(logprobs_from_files(parts, IDS, START), logprobs_from_files(untied, IDS, START))

    def test_an_index_that_is_wrong(self, parts: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(parts, tmp_path / "model"))
        index = folder / "model.safetensors.index.json"
        places = json.loads(index.read_text())["weight_map"]
        other = next(name for name in sorted(places.values()) if name != file_of_head(folder))
        index.write_text(json.dumps({"weight_map": places | {HEAD: other}}))
        with pytest.raises(MismatchError, match=says(f"lm_head.weight ... {folder / other}")):
            load_head(folder)
        index.write_text("[]")
        with pytest.raises(MismatchError, match=says(f"{index} ... index")):
            load_head(folder)


class TestRefusals:
    @pytest.mark.parametrize("load", [load_head, lambda folder: logprobs_from_files(folder, IDS, START)])
    def test_damaged_files(self, load: Callable[[Path], Any], untied: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(untied, tmp_path / "model"))
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(content[:-8])
        with pytest.raises(MismatchError, match=says(f"{len(content) - 8:,} of {len(content):,} bytes")):
            load(folder)
        (folder / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
        with pytest.raises(MismatchError, match=says("git lfs pull")):
            load(folder)

    @pytest.mark.parametrize("load", [load_head, lambda folder: logprobs_from_files(folder, IDS, START)])
    def test_no_safetensors_files(self, load: Callable[[Path], Any], untied: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(untied, tmp_path / "model"))
        torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
        (folder / WEIGHTS).unlink()
        assert load_model(folder) is not None
        with pytest.raises(MismatchError, match=says(f"'{folder}' ... model.safetensors ... save_pretrained")):
            load(folder)

    def test_no_head(self, untied: Path, rewritten: Callable[..., Path]) -> None:
        with pytest.raises(MismatchError, match=says("lacks ... lm_head.weight")):
            load_head(rewritten(untied, (HEAD,)))

    def test_no_bias(self, tmp_path: Path, rewritten: Callable[..., Path]) -> None:
        save(FAMILIES["Phi"](), tmp_path / "phi")
        with pytest.raises(MismatchError, match=says("lacks ... lm_head.bias")):
            load_head(rewritten(tmp_path / "phi", ("lm_head.bias",)))

    def test_another_shape(self, untied: Path, rewritten: Callable[..., Path]) -> None:
        folder = rewritten(untied, **{HEAD: torch.zeros(ROWS + 8, WIDTH)})
        with pytest.raises(MismatchError, match=says("lm_head.weight ... (104, 32) ... (96, 32) ... config.json")):
            load_head(folder)

    @pytest.mark.parametrize(
        ("name", "packed", "dtype"),
        [
            ("lm_head.qweight", torch.zeros(4, ROWS, dtype=torch.int32), "I32"),
            (HEAD, torch.zeros(ROWS, WIDTH, dtype=torch.uint8), "U8"),
            (HEAD, torch.zeros(ROWS, WIDTH, dtype=torch.float8_e4m3fn), "F8_E4M3"),
        ],
    )
    def test_a_quantized_head(
        self, name: str, packed: torch.Tensor, dtype: str, untied: Path, rewritten: Callable[..., Path]
    ) -> None:
        with pytest.raises(MismatchError, match=says(f"quantized ... {name} ... {dtype} ... bfloat16")):
            load_head(rewritten(untied, (HEAD,), **{name: packed}))

    def test_an_embedding_beside_a_quantized_head(self, tied: Path, rewritten: Callable[..., Path]) -> None:
        with pytest.raises(MismatchError, match=says("quantized ... lm_head.weight_packed")):
            load_head(rewritten(tied, **{"lm_head.weight_packed": torch.zeros(4, 4, dtype=torch.int32)}))

    def test_no_such_model(self, tmp_path: Path) -> None:
        for load in (load_head, lambda source: logprobs_from_files(source, IDS, START)):
            with pytest.raises(MismatchError, match=says(f"'{tmp_path / 'none'}'")):
                load(tmp_path / "none")


def test_the_layers_of_a_quantized_model_are_not_compared(untied: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(untied, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config))
    assert same(load_head(folder), load_head(untied))
    with pytest.raises(NotComparable, match=says(f"'{folder}' ... quantized")):
        logprobs_from_files(folder, IDS, START)


def test_weights_that_would_fill_the_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts are saved one by one, and the model has those of a layer in one tensor: 2 x 4 x 3 x 16 x 32 numbers."""
    save(FAMILIES["Qwen 3, experts"](), tmp_path)
    needed = 2 * 4 * 3 * 16 * WIDTH * 2
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 0, 2 * needed))
    logprobs_from_files(tmp_path, IDS, START)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 0, 2 * needed - 1))
    with pytest.raises(NotComparable, match=says("TMPDIR ... GB free")):
        logprobs_from_files(tmp_path, IDS, START)


class TestAdapters:
    @pytest.fixture
    def adapt(self, tmp_path: Path) -> Callable[..., Path]:
        import peft

        def add(base: Path, **settings: Any) -> Path:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of embeddings
                adapted = peft.get_peft_model(load_model(base), peft.LoraConfig(**settings))
                adapted.save_pretrained(tmp_path / "adapter")
            return tmp_path / "adapter"

        return add

    def test_one_that_leaves_the_head_as_it_was(self, untied: Path, tied: Path, adapt: Callable[..., Path]) -> None:
        for base in (untied, tied):
            assert same(load_head(adapt(base, target_modules=["q_proj"])), load_head(base))
        with pytest.raises(NotComparable, match=says("adapter ... vopd merge")):
            logprobs_from_files(adapt(untied, target_modules=["q_proj"]), IDS, START)

    def test_one_on_the_embedding(self, untied: Path, tied: Path, adapt: Callable[..., Path]) -> None:
        assert same(load_head(adapt(untied, target_modules=["embed_tokens"])), load_head(untied))
        with pytest.raises(MismatchError, match=says("output head ... vopd merge")):
            load_head(adapt(tied, target_modules=["embed_tokens"]))

    @pytest.mark.parametrize(
        "settings",
        [
            {"target_modules": ["q_proj", "lm_head"]},
            {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
            {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [3, 4]}},
        ],
    )
    def test_one_on_the_head(self, settings: dict[str, Any], untied: Path, adapt: Callable[..., Path]) -> None:
        with pytest.raises(MismatchError, match=says(f"'{untied}' ... output head ... vopd merge")):
            load_head(adapt(untied, **settings))


@pytest.fixture
def hub(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub with the model "org/model" in several files; the files that were downloaded from it."""
    import huggingface_hub

    sent: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = parts / Path(self.path).name
            if self.path.startswith("/api/models/org/model"):
                names = sorted(file.name for file in parts.iterdir())
                tree = [{"type": "file", "path": name, "size": 1, "oid": name} for name in names]
                model = {"id": "org/model", "sha": "0" * 40, "siblings": [{"rfilename": name} for name in names]}
                return self.send(json.dumps(tree if "/tree/" in self.path else model).encode(), {})
            if not self.path.startswith("/org/model/resolve/"):
                return self.send(b"", {"X-Error-Code": "RepoNotFound"}, 404)
            if not path.is_file():
                return self.send(b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "0" * 40}, 404)
            sent.extend([path.name] * body)
            return self.send(path.read_bytes(), {"ETag": f'"{path.name}"', "X-Repo-Commit": "0" * 40})

        def send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *given: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # which keeps an address
    yield sent
    server.shutdown()
    server.server_close()


class TestHub:
    def test_only_the_file_with_the_head_is_downloaded(self, hub: list[str], parts: Path) -> None:
        assert same(load_head("org/model"), load_head(parts))
        assert [name for name in hub if name.endswith(".safetensors")] == [file_of_head(parts)]
        with pytest.raises(NotComparable, match=says("'org/model' ... on this machine")):
            logprobs_from_files("org/model", IDS, START)
        assert [name for name in hub if name.endswith(".safetensors")] == [file_of_head(parts)]

    def test_all_of_its_files_are_here(self, hub: list[str], parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        assert load_model("org/model") is not None
        del hub[:]
        assert torch.equal(logprobs_from_files("org/model", IDS, START), logprobs_from_files(parts, IDS, START))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert torch.equal(logprobs_from_files("org/model", IDS, START), logprobs_from_files(parts, IDS, START))
        assert same(load_head("org/model"), load_head(parts)) and hub == []

    def test_not_here_and_offline(self, hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        from vopd.models import load_configuration

        load_configuration("org/model")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(MismatchError, match=says("'org/model' ... not on this machine")):
            load_head("org/model")

    def test_what_the_hub_refuses(self, hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        def refuse(*_: Any, **__: Any) -> None:
            raise ConnectionError("no route to host")

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
        with pytest.raises(MismatchError, match=says("model.safetensors ... 'org/model' ... no route to host")):
            load_head("org/model")


def test_progress_bars_and_warnings_are_back_afterwards(untied: Path) -> None:
    from transformers.utils.logging import set_tqdm_hook

    def own(make: Any, given: Any, named: Any) -> Any:
        return make(*given, **named)

    before = set_tqdm_hook(own)
    try:
        logprobs_from_files(untied, IDS, START)
    finally:
        assert set_tqdm_hook(before) is own
    assert not logging.getLogger("vopd").filters
