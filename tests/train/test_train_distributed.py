"""Several processes train the same weights as one, and so does a training that was killed and resumed."""

import multiprocessing
import os
import shutil
import signal
import socket
import sys
from dataclasses import replace

import pytest
import torch
from helpers.chat_records import write_corpus
from helpers.tiny_target import write_target

from methods.core import weights
from specbench.train import drafter, loop
from specbench.train.data import corpus
from specbench.train.recipe import Job, Recipe
from specbench.util.terminal import Console

CLOSE = 1e-6  # for weights of order 1 after STEPS steps; only the order of summation may differ
STEPS, KILLED = 6, 4
KINDS = ("medusa", "eagle3", "s4c")  # heads alone, a layer over the target's features, and both
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_target(folder / "target")
    write_corpus(folder / "c.jsonl", 2000)
    return folder


def job(place, kind, name, accumulate=1):
    """Return a job in its own folder, with a copy of the texts that the first job wrote."""
    recipe = Recipe(tokens=STEPS * 2 * 2 * 64, lr=1e-2, seq=64, accumulate=accumulate, regenerate=40, max_new_tokens=24)
    texts = next(place.glob("alone-*/texts-*"), None)
    if texts and not (place / name).exists():
        shutil.copytree(texts, place / name / texts.name)
    return Job(kind, str(place / "target"), place / "c.jsonl", place / name / "out.safetensors", place / name, recipe=recipe)


def run_process(job, rank, size, port, killed):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    train_step = loop.train_step

    def killed_at_step(module, optimizers, losses_at, step, clip, world):
        if step == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(module, optimizers, losses_at, step, clip, world)

    loop.train_step = killed_at_step
    drafter.train(job, QUIET)


def trained(job, size, killed=None):
    """Train in ``size`` processes and return their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run_process, args=(job, rank, size, port, killed)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def state(job):
    [path] = job.work.glob("*.pt")
    return torch.load(path, weights_only=True)


def largest_difference(one, two):
    return max(float((one["module"][name] - two["module"][name]).abs().max()) for name in one["module"])


@pytest.fixture(scope="module")
def alone(place):
    """Train each kind by one process, with two micro-batches a step."""
    found = {}
    for kind in KINDS:
        found[kind] = job(place, kind, f"alone-{kind}", accumulate=2)
        drafter.train(found[kind], QUIET)
    return found


@pytest.fixture(scope="module")
def together(place, alone):
    """Train each kind by two processes."""
    found = {kind: job(place, kind, f"two-{kind}") for kind in KINDS}
    assert all(trained(each, 2) == [0, 0] for each in found.values())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_the_same_weights_as_one(kind, alone, together):
    assert largest_difference(state(together[kind]), state(alone[kind])) < CLOSE
    one, two = weights.about(together[kind].out), weights.about(alone[kind].out)
    assert one["rank_accuracy"] == two["rank_accuracy"]
    assert one["recipe"] == two["recipe"]


@pytest.mark.slow
def test_two_processes_write_the_same_text_as_one(place, alone):
    mine = replace(job(place, KINDS[0], "wrote"), recipe=replace(alone[KINDS[0]].recipe, tokens=256, accumulate=1))
    shutil.rmtree(mine.work)
    assert trained(mine, 2) == [0, 0]
    texts = [{path.relative_to(each.work): path.read_bytes() for path in each.work.rglob("*.npy")} for each in (mine, alone[KINDS[0]])]
    assert len(texts[0]) == 6
    assert texts[0] == texts[1]


def test_each_process_may_have_several_micro_batches_a_step(place, alone):
    """Gradients of micro-batches are accumulated before they are exchanged."""
    mine, one = job(place, "medusa", "several", accumulate=2), job(place, "medusa", "all", accumulate=4)
    assert trained(mine, 2) == [0, 0]
    drafter.train(one, QUIET)
    assert largest_difference(state(mine), state(one)) < CLOSE


@pytest.mark.slow
def test_a_training_with_fewer_micro_batches_differs(place, alone):
    """A negative control of the tolerance leaves out one micro-batch of each step."""
    mine = job(place, KINDS[0], "half")
    drafter.train(mine, QUIET)
    assert largest_difference(state(mine), state(alone[KINDS[0]])) > 100 * CLOSE


@pytest.fixture
def saving(monkeypatch):
    """Save a checkpoint after every step."""
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", -1.0)
    monkeypatch.setattr(loop, "SAVE_TIME_FACTOR", 0.0)


@pytest.mark.usefixtures("saving")
@pytest.mark.parametrize("size", [1, 2])
def test_a_training_killed_at_a_step_resumes_to_the_same_weights(size, place, alone, together):
    mine = job(place, "medusa", f"killed-{size}", accumulate=2 // size)
    assert trained(mine, size, KILLED) == [-signal.SIGKILL] * size
    assert state(mine)["step"] == KILLED
    assert not mine.out.exists()
    assert trained(mine, size) == [0] * size
    undisturbed = (alone if size == 1 else together)["medusa"]
    assert largest_difference(state(mine), state(undisturbed)) == 0.0
    assert weights.about(mine.out) == weights.about(undisturbed.out)


@pytest.mark.usefixtures("saving")
def test_two_processes_continue_what_one_began(place, alone):
    """The weights depend on the micro-batches of a step, not on which process computes which."""
    assert trained(job(place, "medusa", "handed", accumulate=2), 1, KILLED) == [-signal.SIGKILL]
    mine = job(place, "medusa", "handed")
    assert trained(mine, 2) == [0, 0]
    assert largest_difference(state(mine), state(alone["medusa"])) < CLOSE


def launch(command):
    """Run `accelerate launch` in this process, which starts one process a rank."""
    from accelerate.commands.launch import main

    sys.argv, os.environ["OMP_NUM_THREADS"] = command, "1"
    main()


@pytest.mark.slow
def test_accelerate_launch_trains_the_same_weights_as_one_process(place, alone):
    pytest.importorskip("accelerate")
    mine = job(place, "medusa", "launched")
    launcher = {"--num_processes": 2, "--num_machines": 1, "--mixed_precision": "no", "--dynamo_backend": "no", "--main_process_port": 0}
    arguments = ["--multi_gpu", *(str(word) for pair in launcher.items() for word in pair)]
    command = ["launch", *arguments, "-m", "specbench", "train", "medusa"]
    command += ["--target", mine.target, "--data", str(mine.source), "--out", str(mine.out), "--work", str(mine.work)]
    command += ["--tokens", "1536", "--lr", "0.01", "--seq", "64", "--regenerate", "40", "--max-new-tokens", "24"]
    launched = multiprocessing.get_context("fork").Process(target=launch, args=(command,))
    launched.start()
    launched.join()
    assert launched.exitcode == 0
    assert largest_difference(state(mine), state(alone["medusa"])) < CLOSE


def test_one_gpu_for_several_processes_is_refused(monkeypatch, place):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(drafter.UserError, match="--device cuda:0 is one GPU for 2 processes; pass --device cuda"):
        drafter.train(Job("medusa", "tiny", corpus.Path("c"), place / "o", place, device="cuda:0"), QUIET)
