r"""Train with VOPDTrainer from Python: TRL's arguments, LoRA by `peft_config`, a callback, evaluation while training.

VOPDTrainer takes what TRL's trainers take, so scripts move over with few changes (docs/how-to/from-trl.md).

Run it (the small pair of models inside the package; CPU, no download):
    python examples/trl_script.py
What to expect: exact reverse KL on 64 held-out prompts of 0.317 nats/token at the start, 0.268 after 20 steps and 0.253
after 80, where the callback ends the training (100 steps without it: 0.233, in 46 processor seconds; 2 CPU cores,
torch 2.13, 2026-11-27). In runs/trl-script: metrics.jsonl, samples.jsonl and the adapter in model/.

Real models (one GPU of 80 GB; NOT run on that hardware yet, so no numbers):
    python examples/trl_script.py --student Qwen/Qwen3-1.7B-Base --teacher Qwen/Qwen3-8B --data problems.jsonl \
        --learning_rate 1e-5 --max_completion_length 1024 --batch_size 8 --target 0.01
problems.jsonl has one object per line with "prompt" and "answer"; the prompt asks for the answer in \boxed{}.
"""

import argparse

from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import TrainerCallback

from vopd import VOPDConfig, VOPDTrainer
from vopd.experiments.pair import embedded_pair, pair_problems


class StopWhenClose(TrainerCallback):
    """Ends training once the exact reverse KL on the evaluation prompts is below `target` nats/token."""

    def __init__(self, target: float):
        self.target = target

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        print(f"step {state.global_step}: held-out reverse KL {metrics['eval_reverse_kl']:.3f} nats/token", flush=True)
        control.should_training_stop |= metrics["eval_reverse_kl"] < self.target


def problems(args: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """Training and held-out rows with the columns prompt and answer; training never reads the answers."""
    if args.data:
        split = load_dataset("json", data_files=args.data, split="train").train_test_split(args.held_out, seed=0)
        return split["train"], split["test"]
    train, held_out = (
        Dataset.from_list([{"prompt": one.question, "answer": one.answer} for one in pair_problems(split, count, 0)])
        for split, count in (("train", args.max_steps * args.batch_size), ("held_out", args.held_out))
    )
    return train, held_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default=str(embedded_pair().student))
    parser.add_argument("--teacher", default=str(embedded_pair().teacher))
    parser.add_argument("--data")
    parser.add_argument("--output_dir", default="runs/trl-script")
    parser.add_argument("--max_steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--max_completion_length", type=int, default=56)
    parser.add_argument("--held_out", type=int, default=64)
    parser.add_argument("--target", type=float, default=0.255)
    args = parser.parse_args()

    train, held_out = problems(args)
    trainer = VOPDTrainer(
        model=args.student,
        teacher_model=args.teacher,
        args=VOPDConfig(
            output_dir=args.output_dir,
            estimator="full_rkl",  # the teacher's full distribution is at hand
            max_steps=args.max_steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            max_completion_length=args.max_completion_length,
            eval_on_start=True,
            eval_strategy="steps",  # the loss and all metrics on eval_dataset, as eval_*
            eval_steps=max(1, args.max_steps // 5),
            logging_steps=10,
            save_strategy="no",
        ),
        train_dataset=train,
        eval_dataset=held_out,
        peft_config=LoraConfig(
            r=16,
            lora_alpha=32,
            lora_dropout=0.0,  # sampling and gradient must see the same policy
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[StopWhenClose(args.target)],
    )
    trainer.train()
    trainer.save_model(f"{args.output_dir}/model")  # the adapter; vopd eval reads it as it is
    print(f"saved {args.output_dir}/model; vopd report {args.output_dir} draws the run")


if __name__ == "__main__":
    main()
