"""Schedules, draws, averages, configs, metrics, locks, progress: the parts that hang on the loop."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from training_toys import seeded, trainer

from hwaga.errors import InputError, WorkError
from hwaga.training import EmaConfig, Progress, StepDraw, TrainingConfig
from hwaga.training import progress as progress_room
from hwaga.training.lock import locked
from hwaga.training.metrics import Metrics, gradient_spikes, held_out_turns, loss_diverges, loss_stands_still, read_rows
from hwaga.training.moves import Ema, decay, rate
from hwaga.training.report import charts, svg, write_report
from hwaga.training.signals import Stop, stoppable

# ----------------------------------------------------------------------------------------------------------- schedules


def config(**values: object) -> TrainingConfig:
    return TrainingConfig(**{"steps": 110, **values})


def test_warmup_rises_in_a_straight_line_to_one() -> None:
    assert [rate(config(warmup=4), step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("constant", {0: 0.1, 9: 1.0, 60: 1.0, 110: 1.0}),
        ("cosine", {9: 1.0, 10: 1.0, 35: (1 + math.sqrt(0.5)) / 2, 60: 0.5, 110: 0.0}),
        ("linear", {10: 1.0, 35: 0.75, 60: 0.5, 110: 0.0}),
        ("inverse-sqrt", {9: 1.0, 39: 0.5, 89: 1 / 3}),
    ],
)
def test_schedules_have_their_values(schedule: str, values: dict[int, float]) -> None:
    for step, value in values.items():
        assert rate(config(schedule=schedule, warmup=10), step) == pytest.approx(value, abs=1e-12)


def test_a_schedule_ends_at_its_final_rate() -> None:
    for schedule in ("cosine", "linear"):
        assert rate(config(schedule=schedule, final_rate=0.1), 110) == pytest.approx(0.1)
        assert rate(config(schedule=schedule, final_rate=0.1), 500) == pytest.approx(0.1)


# --------------------------------------------------------------------------------------------------------------- draws


def test_a_part_of_a_batch_draws_its_slice_of_the_whole() -> None:
    whole = StepDraw(3, "s", 5, whole=10)
    for start, count in ((0, 4), (4, 6), (9, 1)):
        part = StepDraw(3, "s", 5, whole=10, start=start, count=count)
        here = slice(start, start + count)
        assert torch.equal(part.normal("a", (count, 2, 3)), whole.normal("a", (10, 2, 3))[here])
        assert torch.equal(part.uniform("a", (count,)), whole.uniform("a", (10,))[here])
        assert torch.equal(part.integers("a", 9, (count,)), whole.integers("a", 9, (10,))[here])


@pytest.mark.parametrize("other", [(4, "s", 5, "a"), (3, "t", 5, "a"), (3, "s", 6, "a"), (3, "s", 5, "b")])
def test_seed_stage_step_and_name_each_change_the_draw(other: tuple[int, str, int, str]) -> None:
    seed, stage, step, name = other
    a = StepDraw(3, "s", 5, whole=8).normal("a", (8,))
    assert not torch.equal(a, StepDraw(seed, stage, step, whole=8).normal(name, (8,)))


def test_draws_do_not_depend_on_the_draws_before_them_and_touch_no_global_generator() -> None:
    before = torch.get_rng_state()
    a, b = StepDraw(0, "s", 0, whole=4), StepDraw(0, "s", 0, whole=4)
    a.normal("first", (4, 3))
    assert torch.equal(a.uniform("second", (4,)), b.uniform("second", (4,)))
    assert torch.equal(before, torch.get_rng_state())


def test_draws_have_the_distributions_that_they_promise() -> None:
    draw = StepDraw(0, "s", 0, whole=20_000)
    normal, uniform = draw.normal("n", (20_000,)), draw.uniform("u", (20_000,))
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03 and normal.dtype == torch.float32
    assert 0 <= uniform.min() and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.01
    whole = draw.integers("i", 5, (20_000,))
    assert whole.dtype == torch.int64 and set(whole.tolist()) == {0, 1, 2, 3, 4}


def test_a_draw_of_another_length_than_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"draw 'z' of shape \(6, 2\): the first size must be the batch's, 3"):
        StepDraw(0, "s", 0, whole=6, start=0, count=3).normal("z", (6, 2))


# ------------------------------------------------------------------------------------------------------------ averages


def test_the_decay_follows_half_lives_in_pictures() -> None:
    assert decay(100.0, None, batch_size=100, seen=10**9) == 0.5
    assert decay(100.0, None, batch_size=10, seen=10**9) ** 10 == pytest.approx(0.5)
    assert decay(100.0, 0.05, batch_size=10, seen=0) == 0.0
    assert decay(1e9, 0.05, batch_size=10, seen=2000) == pytest.approx(0.5 ** (10 / 100))
    assert decay(50.0, 0.05, batch_size=10, seen=2000) == pytest.approx(0.5 ** (10 / 50))


def test_averages_follow_the_formula_and_the_first_step_copies() -> None:
    net = seeded(lambda: nn.Linear(2, 2, bias=False))
    ema = Ema({"net": net}, EmaConfig(half_lives=(30.0, 300.0), ramp=None), batch_size=10)
    expected: dict[float, float] = {}
    for step, value in enumerate((1.0, 3.0, -2.0, 5.0)):
        nn.init.constant_(net.weight, value)
        ema.update(step)
        for life in (30.0, 300.0):
            keep = 0.5 ** (10 / life)
            expected[life] = value if step == 0 else keep * expected[life] + (1 - keep) * value
            found = ema.weights(life)["net"]["weight"]
            torch.testing.assert_close(found, torch.full((2, 2), expected[life]))


def test_applied_averages_leave_the_same_bits_behind_even_after_an_error() -> None:
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    ema = Ema({"net": net}, EmaConfig(half_lives=(30.0,), ramp=None), batch_size=10)
    ema.update(0)
    with torch.no_grad():
        net[0].weight.add_(1)
        net[1].running_mean.add_(2)
    own = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="within"), ema.applied():
        assert not torch.equal(net[0].weight, own["0.weight"])
        assert not torch.equal(net[1].running_mean, own["1.running_mean"])
        raise RuntimeError("within")
    assert all(torch.equal(own[k], v) for k, v in net.state_dict().items())


def test_raw_weights_can_be_the_model() -> None:
    work = trainer(ema={"half_lives": [100], "model": "raw"})
    work.step()
    assert work.ema.weights() == {} and set(work.ema.averages) == {100.0}


# ------------------------------------------------------------------------------------------------------------- configs


def test_a_stage_has_its_own_values_before_the_common_ones() -> None:
    whole = TrainingConfig.model_validate(
        {"steps": 5, "batch_size": 8, "prior": {"steps": 9, "optimizer": {"weight_decay": 0.1}}}
    )
    prior, other = whole.for_stage("prior"), whole.for_stage("tokenizer")
    assert (prior.steps, prior.batch_size, prior.optimizer.weight_decay) == (9, 8, 0.1)
    assert (other.steps, other.optimizer.weight_decay) == (5, 0.0)
    assert prior.optimizer.betas == whole.optimizer.betas


def test_a_config_with_stages_survives_being_written() -> None:
    whole = TrainingConfig.model_validate(
        {"steps": 5, "prior": {"steps": 9}, "ema": {"half_lives": [10, 20], "model": 20}}
    )
    written = whole.model_dump(mode="json")
    assert written["prior"] == {"steps": 9} and "stages" not in written
    assert TrainingConfig.model_validate(json.loads(json.dumps(written))) == whole


@pytest.mark.parametrize(
    "values", [{"step": 3}, {"steps": 0}, {"steps": True}, {"steps": 1.5}, {"learning_rate": math.inf}, {"dtype":
    "half"},
               {"ema": {"half_lives": [1, 1]}}, {"ema": {"half_lives": [1.0], "model": 2.0}}, {"betas": [0.9, 1.0]}]
)  # fmt: skip
def test_unknown_keys_and_wrong_values_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainingConfig.model_validate(values)


# ------------------------------------------------------------------------------------------------------------- metrics


def test_a_resume_cuts_the_rows_after_its_checkpoint_and_the_line_that_was_half_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = Metrics(path)
    for step in (1, 2, 3):
        first.write({"step": step, "stage": "s", "a.loss": float(step)})
    first.close()
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"step": 4, "sta')
    again = Metrics(path, step=2)
    again.write({"step": 3, "stage": "s", "a.loss": 3.5})
    again.close()
    assert [(row["step"], row["a.loss"]) for row in read_rows(path)] == [(1, 1.0), (2, 2.0), (3, 3.5)]


def test_numbers_that_are_not_finite_are_written_as_json_can(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "m.jsonl")
    metrics.write({"step": 1, "a": math.nan, "b": math.inf})
    metrics.close()
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"step": 1, "a": None, "b": None}


def test_a_full_disk_is_named_when_a_row_is_written(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    metrics = Metrics(tmp_path / "m.jsonl")
    metrics._file = open("/dev/full", "w", encoding="utf-8")
    with pytest.raises(WorkError, match="no space left while writing"):
        metrics.write({"step": 1})
    with pytest.raises(OSError):
        metrics.close()


def rows_of(name: str, values: list[float]) -> list[dict[str, float]]:
    return [{"step": float(10 * i), name: value} for i, value in enumerate(values)]


def test_alarms_sound_for_what_they_watch_and_not_for_a_healthy_run() -> None:
    healthy = [1 / (1 + 0.1 * i) for i in range(400)]
    for alarm, name in ((loss_diverges, "o.loss"), (gradient_spikes, "o.gradient"), (loss_stands_still, "o.loss")):
        assert alarm(rows_of(name, healthy)) is None
    assert held_out_turns(rows_of("held_out.loss", healthy)) is None
    assert "training.learning_rate" in (loss_diverges(rows_of("o.loss", [*healthy[:40], *[2.0] * 10])) or "")
    assert "training.clip_norm" in (gradient_spikes(rows_of("o.gradient", [*healthy[:40], 9.0])) or "")
    assert "stands still" in (loss_stands_still(rows_of("o.loss", [0.5] * 300)) or "")
    turned = held_out_turns(rows_of("held_out.loss", [1.0, 0.5, 0.6, 0.6, 0.7, 0.7, 0.7]))
    assert turned is not None and "lowest at step 10 (0.5)" in turned and "best/" in turned


def test_an_alarm_is_told_once_until_it_has_been_silent(tmp_path: Path) -> None:
    def high(rows):
        return "too high" if rows and rows[-1].get("x", 0) > 1 else None

    metrics = Metrics(tmp_path / "m.jsonl")
    told = []
    for step, value in enumerate((0, 2, 2, 0, 2)):
        metrics.write({"step": step, "stage": "s", "x": value})
        told.append(metrics.ring(step, "s", [high]))
    metrics.close()
    assert told == [[], ["too high"], [], [], ["too high"]]
    assert [row["step"] for row in read_rows(tmp_path / "m.jsonl") if row.get("alarm") == "high"] == [1, 4]


# ----------------------------------------------------------------------------------------------------------------- lock


def test_a_second_process_is_refused_with_the_id_of_the_first_and_a_dead_one_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom hwaga.training.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n    print('in', flush=True)\n    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert holder.stdin is not None and holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"in\n"
        with pytest.raises(InputError, match=f"in use by process {holder.pid} on"), locked(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with locked(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()


# ------------------------------------------------------------------------------------------------------------- signals


def test_signals_ask_for_the_end_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = Stop()
    with stoppable(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_that_may_not_have_handlers_trains_all_the_same() -> None:
    entered = []

    def work() -> None:
        with stoppable(Stop()):
            entered.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [True]


# ------------------------------------------------------------------------------------------------------------- progress


def test_without_a_terminal_progress_is_plain_lines_with_rate_time_left_and_losses() -> None:
    stream = io.StringIO()
    with Progress(stream=stream) as progress:
        progress.stage("denoising", 0, 3)
        for step in (1, 2, 3):
            progress.step(step, 3, 64, {"o.loss": 0.25})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1 and lines[0].startswith("denoising: step 3/3") and "pictures/s" in lines[0]
    assert "o.loss 0.25" in lines[0] and "left" in lines[0] and "\x1b" not in stream.getvalue()


def test_long_work_between_two_steps_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_room, "QUIET_FOR", 0.0)
    said = threading.Event()

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            if "painting samples: working" in text:
                said.set()
            return super().write(text)

    with Progress(stream=Stream()) as progress, progress.doing("painting samples"):
        assert said.wait(timeout=20)


def test_a_terminal_gets_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Progress(stream=stream) as progress:
        progress.stage("denoising", 0, 2)
        progress.step(1, 2, 8, {"o.loss": 0.5})
        progress.say("a line [with brackets]")
        progress.step(2, 2, 8, {"o.loss": 0.5})
    assert "2/2" in stream.getvalue() and "[with brackets]" in stream.getvalue()


# --------------------------------------------------------------------------------------------------------------- report


def test_the_report_escapes_what_it_is_told_and_needs_no_other_file(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    bad = "<script>alert(1)</script>"
    for step in range(1, 40):
        metrics.write({"step": step, "stage": bad, f"{bad}.loss": 1 / step, "held_out.loss": 1 + (step - 9) ** 2})
    metrics.write({"step": 40, "stage": bad, "alarm": "x", "says": bad})
    metrics.close()
    write_report(tmp_path, bad, {"data": bad}, f"system: '{bad}'", [bad])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and page.count("&lt;script&gt;") >= 6 and "<polyline" in page
    assert "http://" not in page and "https://" not in page and 'src="' not in page


def test_the_loss_chart_marks_where_the_held_out_loss_is_lowest() -> None:
    rows = [{"step": s, "stage": "s", "o.loss": 1.0, "held_out.loss": abs(s - 30) + 1.0} for s in range(10, 60, 10)]
    title, curves, mark = charts(rows, "s")[0]
    assert (title, [c.name for c in curves], mark) == ("Loss", ["held_out.loss", "o.loss"], 30)
    assert 'class="mark"' in svg(curves, mark) and 'class="mark"' not in svg(curves)
