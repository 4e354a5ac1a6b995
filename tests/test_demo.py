"""`jaxpipe demo` and `jaxpipe profile`, in processes of their own, as users start them."""

import subprocess
import sys

from children import environment
from test_cli import TINY

from jaxpipe.profiling import scopes_of


def started(folder, *words):
    command = [sys.executable, "-m", "jaxpipe", *words]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


def test_the_demonstration_trains_and_says_where_to_look(tmp_path):
    done = started(tmp_path, "demo", "--out", "here", "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert "4 pipeline stages have learnt 2 batches" in done.stdout
    assert "not yet less than the" in done.stdout  # two steps beat nothing
    for name in ("summary.html", "trace.json", "schedule.svg", "config.yaml"):
        assert (tmp_path / "here" / name).is_file() and f"here/{name}" in done.stdout


def test_a_profile_says_what_takes_the_time(tmp_path):
    (tmp_path / "x.yaml").write_text(TINY)
    (tmp_path / "text").mkdir()
    for number in range(40):
        (tmp_path / "text" / f"{number}.py").write_text(f"x = {number}\n" * 40)
    options = ["--steps", "2", "--out", "traces", "--metrics.heartbeat", "600"]
    done = started(tmp_path, "profile", "x.yaml", *options)
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("F of stage code 0", "W of stage code", "optimizer, and what is around the loop"):
        assert part in done.stdout
    assert "temporaries" in done.stdout and "longest operations" in done.stdout
    assert list((tmp_path / "traces").rglob("*.xplane.pb"))
    assert list((tmp_path / "traces").rglob("*.trace.json.gz"))
    again = started(tmp_path, "profile", "x.yaml", "--out", "traces")
    assert again.returncode == 2 and "expected an empty folder" in again.stderr


def test_operations_belong_to_what_they_were_traced_in():
    text = "\n".join([
        '  %dot.1 = f32[2]{0} dot(%a, %b), metadata={op_name="jit(train)/branch2/while/body/dot"}',
        '  %while.3 = (s32[]) while(%t), metadata={op_name="jit(train)/branch2/while"}',
        '  ROOT cp.4 = f32[2]{0} collective-permute(%x), metadata={op_name="jit(train)/ppermute"}',
        '  mul.5 = f32[2]{0} multiply(%x, %y), metadata={op_name="jit(train)/mul"}',
        "  add.6 = f32[2]{0} add(%x, %y)",
    ])  # fmt: skip
    assert scopes_of(text, ["F", "B"]) == {
        "dot.1": "B",
        "cp.4": "between devices: collective-permute",
        "mul.5": "optimizer, and what is around the loop",
    }
