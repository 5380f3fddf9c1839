"""The workflows' safety properties, and their scripts run with stand-ins for the programs they call."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from specbench import suites
from specbench.analysis.stats import FEWEST

FOLDER = Path(__file__).parents[2] / ".github" / "workflows"
WORKFLOWS = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.yml"))}
CI, GPU = WORKFLOWS["ci.yml"], WORKFLOWS["gpu-regression.yml"]
GATE = GPU["jobs"]["gate"]
VISIT = WORKFLOWS["gpu.yml"]
MEASURE = VISIT["jobs"]["measure"]
ON = True  # YAML 1.1 reads the key "on" so


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def named(name):
    return next(step for step in GATE["steps"] if step.get("name") == name)


@pytest.mark.parametrize("workflow", WORKFLOWS.values(), ids=WORKFLOWS)
def test_every_workflow_only_reads_ends_and_trusts_only_github(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in workflow[ON]
    assert all("timeout-minutes" in job and "permissions" not in job for job in workflow["jobs"].values())
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", each) for each in used), used
    checkouts = [step for step in steps(workflow) if step.get("uses", "").startswith("actions/checkout")]
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)
    assert not any("${{" in step.get("run", "") for step in steps(workflow)), "text of an event in a script is run as one"


def test_ci_runs_on_every_push_and_pull_request_for_each_python():
    assert CI[ON] == {"push": None, "pull_request": None}
    only = "github.event_name == 'pull_request'"
    assert CI["concurrency"] == {
        "group": f"ci-${{{{ {only} && github.ref || github.run_id }}}}",
        "cancel-in-progress": f"${{{{ {only} }}}}",
    }
    job = CI["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert [step["run"] for step in CI["jobs"]["docs"]["steps"] if "run" in step] == ["make docs"]
    assert os.access(FOLDER.parents[1] / ".ci" / "run", os.X_OK)


def test_the_gpu_is_asked_at_night_by_hand_and_by_label_one_at_a_time():
    assert set(GPU[ON]) == {"schedule", "workflow_dispatch", "pull_request"}
    assert GPU[ON]["pull_request"] == {"types": ["labeled"]}
    assert list(GPU["jobs"]) == ["gate"]
    assert GATE["runs-on"] == ["self-hosted", "linux", "gpu"]
    assert GATE["concurrency"] == {"group": "gpu-regression", "cancel-in-progress": False}


def test_the_settings_are_enough_for_a_verdict_and_name_the_test_that_says_so():
    assert "--suite mini " in GATE["env"]["SETTINGS"]
    assert len(suites.load("mini").questions) > FEWEST
    assert "--repeats 2 " in GATE["env"]["SETTINGS"]
    assert len(GATE["env"]["PASSES"].split()) == 4
    above = (FOLDER / "gpu-regression.yml").read_text(encoding="utf-8").split("SETTINGS:")[0].splitlines()[-2]
    assert "48 questions x 4 passes x 2 repeats" in above
    assert "(tests/test_gate_rules.py)" in above


@pytest.mark.parametrize(
    ("event", "label", "repository", "runs"),
    [
        ("schedule", None, None, True),
        ("workflow_dispatch", None, None, True),
        ("pull_request", "gpu-benchmark", "we/specbench", True),
        ("pull_request", "question", "we/specbench", False),
        ("pull_request", "gpu-benchmark", "stranger/specbench", False),
        ("pull_request", "gpu-benchmark", None, False),  # the fork was deleted
    ],
)
def test_no_fork_and_no_other_label_reaches_the_gpu(event, label, repository, runs):
    context = {
        "github.event_name": event,
        "github.event.label.name": label,
        "github.event.pull_request.head.repo.full_name": repository,
        "github.repository": "we/specbench",
    }
    condition = re.sub(r"github[\w.]+", lambda name: repr(context[name[0]]), GATE["if"])
    assert eval(condition.replace("&&", " and ").replace("||", " or ")) is runs  # the expression's operators mean the same


def script(step, folder, **env):
    """Run a step's script as the runner does, in ``folder``."""
    programs = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder), "WORK": str(folder / "work")}
    asked = {name: str(GATE["env"][name]) for name in ("SETTINGS", "PASSES")}
    command = ["bash", "-e", "-c", step["run"]]
    return subprocess.run(command, cwd=folder, env=programs | asked | env, capture_output=True, text=True, check=False)


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def test_base_and_head_take_turns_and_go_first_in_turn(tmp_path):
    program(tmp_path / "nvidia-smi", "")
    for side in ("base", "head"):
        program(tmp_path / side / ".venv" / "bin" / "specbench", f'echo "{side} $*" >> calls')
    (tmp_path / "work" / "base-1").mkdir(parents=True)
    (tmp_path / "work" / "base-1" / "records.jsonl").write_text("of yesterday")
    ended = script(named("Measure base and head in turn"), tmp_path)
    assert ended.returncode == 0, ended.stderr
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    assert [call[0] for call in calls] == ["base", "head", "head", "base"] * 2
    assert [Path(call[-1]).name for call in calls[:4]] == ["base-1", "head-1", "head-2", "base-2"]
    assert len({tuple(call[1:-1]) for call in calls}) == 1, "both sides run with the same settings"
    assert list((tmp_path / "work").iterdir()) == []


def test_a_busy_gpu_is_not_measured_on(tmp_path):
    program(tmp_path / "nvidia-smi", "echo 4711")
    assert script(named("Measure base and head in turn"), tmp_path).returncode == 1


@pytest.mark.parametrize(("code", "said"), [(0, ""), (1, "::error title=Regression"), (2, "::error title=No"), (3, "::warning title=Inc")])
def test_the_checks_exit_code_is_the_jobs_and_its_markdown_the_summary(tmp_path, code, said):
    (tmp_path / "work").mkdir()
    written = "" if code == 2 else 'echo "## verdict" > "$WORK/check.md"; '
    program(tmp_path / "head" / ".venv" / "bin" / "specbench", f'echo "$*" > calls; {written}exit {code}')
    ended = script(named("Check head against base"), tmp_path, GITHUB_STEP_SUMMARY=str(tmp_path / "summary"))
    assert ended.returncode == code
    assert ended.stdout.startswith(said)
    assert (tmp_path / "summary").exists() == (code != 2)
    call = (tmp_path / "calls").read_text().replace(f"{tmp_path}/work/", "")
    pairs = " ".join(f"head-{k} --baseline base-{k}" for k in range(1, 5))
    assert call == f"check {pairs} --junit check.xml --markdown check.md\n"


def test_the_base_is_the_parent_the_revision_asked_for_or_yesterdays(tmp_path):
    def git(*arguments, at=""):
        author = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **author} | ({"GIT_COMMITTER_DATE": at} if at else {})
        return subprocess.run(["git", *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout.strip()

    nothing = "so there is nothing to compare; start the job by hand with another"
    git("init", "-q")
    shas = {}
    for name, at in {"old": "2020-01-01T00:00", "older parent": "2020-01-02T00:00", "today": ""}.items():
        git("commit", "-q", "--allow-empty", "-m", name, at=at)
        shas[name] = git("rev-parse", "HEAD")

    said: list[str] = []

    def chosen(event, asked=""):
        output = tmp_path / "output"
        output.write_text("")
        said.clear()
        ended = script(named("Choose the base"), tmp_path, EVENT=event, ASKED=asked, GITHUB_OUTPUT=str(output))
        said.extend(ended.stdout.splitlines())
        return output.read_text().strip() if ended.returncode == 0 else None

    assert chosen("pull_request") == f"revision={shas['older parent']}"
    assert chosen("schedule") == f"revision={shas['older parent']}"
    assert chosen("workflow_dispatch", "HEAD~2") == f"revision={shas['old']}"
    assert chosen("workflow_dispatch", "no-such") is None
    assert chosen("workflow_dispatch", "--all") is None
    assert chosen("workflow_dispatch", "HEAD") is None
    assert said == [f"::error title=No base::the base is {shas['today']}, {nothing}"]
    git("checkout", "-q", shas["older parent"])  # no commit since yesterday
    assert chosen("schedule") == f"revision={shas['old']}"
    git("checkout", "-q", "--orphan", "young")
    git("commit", "-q", "--allow-empty", "-m", "first")  # no commit before today
    assert chosen("schedule") is None
    assert said == [f"::error title=No base::the base is no revision at all, {nothing}"]


def measure(folder, make, busy=""):
    """Run the workflow's step of `make gpu` with a stand-in for make, and a GPU that is ``busy`` or not."""
    program(folder / "nvidia-smi", f'echo -n "{busy}"')
    program(folder / "make", make)
    step = next(step for step in MEASURE["steps"] if step.get("name") == "Measure")
    env = {"PATH": f"{folder}:{os.environ['PATH']}", "WORK": str(folder / "work"), "GITHUB_STEP_SUMMARY": str(folder / "summary")}
    return subprocess.run(["bash", "-e", "-c", step["run"]], cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_make_gpu_is_run_at_night_by_hand_and_by_a_label_of_its_own_one_at_a_time():
    assert set(VISIT[ON]) == {"schedule", "workflow_dispatch", "pull_request"}
    assert VISIT[ON]["pull_request"] == {"types": ["labeled"]}
    assert VISIT[ON]["schedule"] != GPU[ON]["schedule"]
    assert list(VISIT["jobs"]) == ["measure"]
    assert MEASURE["runs-on"] == GATE["runs-on"]
    assert MEASURE["concurrency"] == {"group": "gpu-measure", "cancel-in-progress": False}
    assert MEASURE["if"] == GATE["if"].replace("gpu-benchmark", "gpu-measure"), "no fork reaches the GPU"


@pytest.mark.parametrize("code", [0, 2])
def test_what_make_gpu_wrote_is_the_summary_and_its_failure_the_jobs(tmp_path, code):
    (tmp_path / "work" / "report").mkdir(parents=True)
    (tmp_path / "work" / "report" / "report.md").write_text("of yesterday")
    written = 'mkdir -p "$WORK/roofline-static"; echo "## roofline" > "$WORK/roofline-static/roofline.md"'
    ended = measure(tmp_path, f'echo "$*" > calls; {written}; exit {code}')
    assert ended.returncode == code
    assert (tmp_path / "calls").read_text() == f"gpu GPU_OUT={tmp_path}/work\n"
    assert (tmp_path / "summary").read_text() == "## roofline\n"


def test_make_gpu_does_not_measure_on_a_busy_gpu(tmp_path):
    ended = measure(tmp_path, "touch calls", busy="4711")
    assert ended.returncode == 1
    assert not (tmp_path / "calls").exists()


def test_what_was_measured_is_kept_even_if_the_job_failed():
    upload = next(step for step in MEASURE["steps"] if step.get("uses", "").startswith("actions/upload-artifact"))
    assert upload["if"] == "${{ !cancelled() && steps.measure.outcome != 'skipped' }}"
    assert MEASURE["env"]["WORK"] == "${{ github.workspace }}/" + upload["with"]["path"]
