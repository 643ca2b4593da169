"""Options that a run takes, and those that it refuses, before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from cases import RUN, Case, Place

MIN_LR = "--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs"
TRAINED = ("r/model/", "r/resolved_config.yaml")
SERVED = "validate --model {S} --dataset {p} --output_dir {out} --use_cpu true --max_completion_length 8 "
SERVED += "--per_device_train_batch_size 4 --teacher_server_url http://127.0.0.1:8000 --estimator opd "
OF_TWO = SERVED.replace("--teacher_server_url http://127.0.0.1:8000 --estimator opd ", "--estimator vopd --teachers ")


def config(text: str) -> Callable[[Place], object]:
    """A configuration file in the work folder."""

    def write(place: Place) -> None:
        (place.work / "mine.yaml").write_text(text.replace("{work}", str(place.work)))

    return write


def at_home(place: Place) -> None:
    """The student is in the home folder, and named so in a file."""
    home = place.work / "home"
    home.mkdir()
    (home / "stud").symlink_to(place.student)
    (home / "p.jsonl").symlink_to(place.prompts)
    config("model: ~/stud\ndataset: [~/p.jsonl]\nteachers: {default: ~/stud}\n")(place)


def teacher_at_home(place: Place) -> None:
    """The teacher's files are in the home folder."""
    home = place.work / "home"
    home.mkdir()
    (home / "t").symlink_to(place.teacher)


def published(place: Place) -> None:
    """A student as many are published: a temperature without do_sample, which transformers does not save once an end
    token or the padding token was added."""
    student = place.work / "published"
    shutil.copytree(place.student, student)
    (student / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9, "eos_token_id": 26}')


def run_beside(place: Place) -> None:
    """The output folder has another run."""
    (place.out / "other").mkdir(parents=True)
    (place.out / "other" / "metrics.jsonl").write_text("{}")


REFUSED = [
    # ---- ranges
    ("--learning_rate -1", "learning_rate ... at least 0 ... -1"),
    ("--learning_rate nan", "learning_rate ... nan"),
    ("--learning_rate inf", "learning_rate ... finite ... inf"),
    ("--per_device_train_batch_size 0", "per_device_train_batch_size ... at least 1"),
    ("--gradient_accumulation_steps 0", "gradient_accumulation_steps ... at least 1"),
    ("--max_steps 0", "max_steps ... at least 1 ... -1"),
    ("--num_train_epochs 0 --max_steps -1", "num_train_epochs ... above 0"),
    ("--seed -1", "seed ... at least 0"),
    ("--adam_beta1 1", "adam_beta1 ... below 1"),
    ("--save_steps 0", "save_steps ... above 0"),
    ("--logging_steps -1", "logging_steps ... above 0"),
    ("--save_total_limit 0", "save_total_limit ... at least 1"),
    ("--max_grad_norm nan", "max_grad_norm ... nan"),
    ("--temperature inf", "temperature ... finite"),
    ("--estimator full_rkl --top_p 2", "top_p ... at most 1"),
    ("--lr_scheduler_kwargs {min_lr:1}", "lr_scheduler_kwargs ... space after the colon ... 'min_lr:1'"),
    ("--teachers {a:x}", "teachers ... space after the colon ... 'a:x'"),
    ("--remove_unused_columns true --teacher_prompt_column answer", "remove_unused_columns ... remove it"),
    # ---- choices
    ("--save_strategy none", "save_strategy 'none' ... 'no'"),
    ("--log_level loud", "log_level 'loud' ... debug"),
    ("--optim adam", "optim 'adam' ... did you mean"),
    ("--use_vllm true --vllm_mode sever", "vllm_mode 'sever' ... 'server'"),
    ("--report_to mlflow", "mlflow ... pip install mlflow"),
    ("--generation_kwargs foo", "generation_kwargs ... {key: value} ... 'foo'"),
    ("--chat_template_kwargs '[1]'", "chat_template_kwargs ... {key: value} ... '[1]'"),
    ("--lora_rank 2 --lora_alpha 0", "lora_alpha ... at least 1"),
    # ---- needs
    ("--reward_funcs math --num_generations 2 --reward_weights abc", "reward_weights ... number ... 'abc'"),
    ("--lr_scheduler_type cosine_with_min_lr", "cosine_with_min_lr ... min_lr_rate"),
    ("--lr_scheduler_kwargs '{num_cycles: 2}'", "lr_scheduler_type=linear ... num_cycles ... takes nothing"),
    ("--lr_scheduler_type constant --lr_scheduler_kwargs '{power: 2}'", "lr_scheduler_type=constant ... no effect"),
    ("--lr_scheduler_type warmup_stable_decay", "num_decay_steps ... schedule takes num_decay_steps, num_stable_steps"),
    ("--vllm_mode server", "vllm_mode ... use_vllm"),
    ("--loss_backend triton", "loss_backend=triton ... use_cpu"),
    ("--teacher_scoring steps", "teacher_scoring 'steps' ... step, step_on_host"),
    ("--teacher_offload true --teacher_model self:frozen --teacher_prompt_column answer", "teacher_offload ... local"),
    # ---- no place in a run
    ("--neftune_noise_alpha 5", "neftune_noise_alpha ... rollouts ... remove it"),
    ("--label_smoothing_factor 0.1", "label_smoothing_factor ... no effect"),
    ("--auto_find_batch_size true", "auto_find_batch_size ... per_device_train_batch_size"),
    ("--fp16 true", "fp16 ... no effect ... bf16=true"),
    ("--use_liger_kernel true", "use_liger_kernel ... remove it"),
    ("--fsdp full_shard", "fsdp ... accelerate launch"),
    ("--deepspeed zero2.json", "deepspeed ... accelerate launch"),
    ("--data_seed 3", "data_seed ... set seed"),
    ("--beta 0.5", "beta ... estimator"),
    ("--eval_strategy steps", "eval_strategy ... eval_benchmarks"),
    ("--load_best_model_at_end true", "load_best_model_at_end ... eval_benchmarks"),
    ("--hub_token hf_abc", "hub_token ... HF_TOKEN"),
    ("--resume_from_checkpoint here", "resume_from_checkpoint ... resume"),
    ("--trust_remote_code true", "trust_remote_code ... never"),
    # ---- sampling
    ("--top_k 10", "top_k ... loss_top_k=10"),
    ("--estimator full_rkl --top_k 10", "top_k ... loss_top_k=10"),
    ("--estimator full_rkl --generation_kwargs '{top_k: 10}'", "top_k=10 ... loss_top_k=10"),
    ("--generation_kwargs '{eos_token_id: 26}'", "eos_token_id ... generation_config.json"),
    ("--generation_kwargs '{eos_token_id: [1, 26]}'", "eos_token_id ... generation_config.json"),
    ("--generation_kwargs '{stop_token_ids: [26]}'", "stop_token_ids ... generation_config.json"),
    ("--generation_kwargs '{stop_strings: [a]}'", "stop_strings ... id of a token ... generation_config.json"),
    ("--generation_kwargs '{use_cache: true, use_cache: false}'", "'use_cache' ... keep one"),
    ("--lr_scheduler_type reduce_lr_on_plateau", "reduce_lr_on_plateau ... choose another one"),
    ("--generation_kwargs '{prompt_lookup_num_tokens: 3}'", "prompt_lookup_num_tokens"),
    ("--generation_kwargs '{assistant_model: x}'", "assistant_model"),
    ("--generation_kwargs '{max_new_tokens: 2}'", "max_new_tokens ... max_completion_length"),
    ("--generation_kwargs '{typical: 0.9}'", "typical ... 'typical_p'"),
    ("--estimator full_rkl --generation_kwargs '{max_time: 0.1}'", "max_time ... max_completion_length"),
]

CASES = [
    Case("RUN --lerning_rate 1", 2, "lerning_rate ... learning_rate"),
    Case("RUN --generation_kwargs '{use_cache: true}' --seed 0", 0, "trained 2 steps", leaves=TRAINED),
    # ---- a configuration file
    Case("RUN --config {work}/mine.yaml", 0, "trained 2 steps", leaves=TRAINED, before=config("save_strategy: no\n")),
    Case("RUN --config {work}/mine.yaml", 0, "trained 2 steps", leaves=TRAINED, before=config("chat-template: off\n")),
    Case(
        "RUN --config {work}/mine.yaml", 2, "mine.yaml ... 'seed' ... line 1 ... line 3",
        before=config("seed: 1\nmax_steps: 2\nseed: 2\n"),
    ),
    Case(
        "RUN --config {work}/mine.yaml", 2, "'learning_rate' ... line 1 ... line 2",
        before=config("learning-rate: 1.0e-4\nlearning_rate: 1.0e-3\n"),
    ),
    Case(
        "RUN --config {work}/mine.yaml", 2, "'top_p' ... line 2 ... line 3",
        before=config("generation_kwargs:\n  top_p: 1\n  top_p: 0.5\n"),
    ),
    Case(
        "RUN --dry_run --config {work}/mine.yaml", 0, "steps 2",
        before=config("lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-7}\n"),
    ),
    Case(
        "RUN --dry_run --lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs '{min_lr: 1e-7}'", 0, "steps 2"
    ),
    Case("RUN --config {work}/mine.yaml", 2, "save_strategy ... None", before=config("save_strategy: null\n")),
    Case("train --config {work}/mine.yaml --output_dir {out} --run_name r --use_cpu true --max_steps 1 "
         "--per_device_train_batch_size 4 --max_completion_length 8", 0, "trained 1 step",
         leaves=TRAINED, before=at_home),
    # ---- numbers without a dot are numbers in a dictionary, too
    Case(f"RUN {MIN_LR} '{{min_lr: 1e-7}}'", 0, "trained 2 steps", leaves=TRAINED),
    Case(
        "RUN --lr_scheduler_type cosine_with_min_lr --config {work}/mine.yaml", 0, "trained 2 steps", leaves=TRAINED,
        before=config("lr_scheduler_kwargs:\n  min_lr: 1e-7\nlearning_rate: 1e-5\n"),
    ),
    Case(f"RUN {MIN_LR} '{{min_lr: \"1e-7\"}}'", 2, "min_lr ... 'str'"),
    # ---- an option that is refused is told once, and nothing advises to set it
    Case("RUN --eval_strategy step", 2, "eval_strategy ... eval_benchmarks", lacks=("did you mean",)),
    Case("RUN --load_best_model_at_end true", 2, "eval_benchmarks", lacks=("set eval_strategy",)),
    Case("RUN --run_name 'a b'", 2, "'a b' ... letters", lacks=("not empty",), before=run_beside),
    # ---- what comes with a model
    Case("RUN --model {work}/published", 0, "trained 2 steps", leaves=TRAINED, before=published),
    Case("RUN --model {work}/published --lora_rank 2", 0, "trained 2 steps", leaves=TRAINED, before=published),
    # ---- two servers, and servers of several teachers
    Case(SERVED, 0, "valid"),
    Case(SERVED + "--teacher_offload true", 2, "teacher_offload ... local"),
    Case(SERVED + "--teacher_offload true --teacher_model {T}", 0, "valid"),
    Case(SERVED + "--estimator vopd", 2, "'vopd' ... server that gives scores ... teacher_model"),
    Case(SERVED + "--estimator vopd --teacher_model {T}", 0, "valid"),
    Case(SERVED + "--estimator vopd --teacher_model {T} --teacher_server_payload scores", 2, "'vopd' ... scores"),
    Case(SERVED + "--teacher_server_payload hidden_states", 2, "output head ... set teacher_model"),
    Case(SERVED + "--teacher_server_payload states", 2, "teacher_server_payload 'states' ... hidden_states"),
    Case(SERVED + "--teacher_server_dtype int8", 2, "teacher_server_dtype 'int8' ... bfloat16"),
    Case(OF_TWO + "'{default: {server_url: [http://a, http://b], model: ~/t}}'", 0, "valid", before=teacher_at_home),
    Case(OF_TWO + "'{default: {url: http://a:1}}'", 2, "teachers: default ... {server_url: URL, model: PATH}"),
    Case(SERVED + "--teacher_scoring step", 2, "teacher_scoring ... servers ... remove it"),
    Case(SERVED + "--use_vllm true --vllm_mode server", 2, "http://127.0.0.1:8000 ... vllm_server_port"),
    Case(SERVED + "--use_vllm true --vllm_mode server --vllm_server_host localhost", 2, "8000 ... vllm_server_port"),
    Case(SERVED + "--use_vllm true --vllm_mode server --vllm_server_port 8001", 0, "valid"),
    Case(
        "train --model {S} --teachers '{default: \"http://127.0.0.1:9\"}' --dataset {p} --output_dir {out} "
        "--run_name r --use_cpu true --per_device_train_batch_size 4 --max_completion_length 8 --estimator opd "
        "--teacher_server_deadline 0.1 --teacher_server_retries 0", 5, "http://127.0.0.1:9",
    ),
    # ---- packages
    Case(
        "RUN --dry-run --lora_rank 2 --quantization 4bit", 2, "bitsandbytes ... pip install bitsandbytes",
        lacks=("vopd[",),
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.command[-70:])
def test_options(case: Case, place, capfd, monkeypatch):
    monkeypatch.setenv("HOME", str(place.work / "home"))
    if "quantization" in case.command:
        monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    case.check(place, capfd.readouterr)


@pytest.mark.parametrize(("options", "says"), REFUSED, ids=lambda given: given[:50])
def test_a_refused_option_writes_nothing(options: str, says: str, place, capfd):
    Case(f"RUN {options}", 2, says, lacks=("hf_abc",)).check(place, capfd.readouterr)


@pytest.mark.parametrize("command", ["validate", "train --dry-run", "compare --estimator opd --held_out {p}"])
@pytest.mark.parametrize(
    "option", ["--learning_rate -1", "--hub_token hf_abc", "--generation_kwargs '{eos_token_id: 26}'"]
)
def test_every_command_that_trains_refuses_them(command: str, option: str, place, capfd):
    name = option.split()[0].removeprefix("--")
    Case(f"{RUN.replace('train', command, 1)} {option}", 2, name).check(place, capfd.readouterr)
