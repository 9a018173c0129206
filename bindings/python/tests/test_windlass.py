"""Jobs of ranks in Python, and the package's tables."""

import ast
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import windlass
from windlass import _native
from windlass.__main__ import with_interpreter

PACKAGE = Path(windlass.__file__).parent
EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("count", [1, 5, 3000])
def test_every_collective_gives_what_numpy_gives(job, transport, count):
    wrote = job(4, "programs/matrix.py", str(count), WINDLASS_TRANSPORT=transport)
    checked = [int(cases) for cases in re.findall(r"checked (\d+)", wrote)]
    assert len(checked) == 4 and min(checked) > 300, checked


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("count", [5, 30000])
def test_every_collective_on_device_memory_that_moves(job, transport, count):
    wrote = job(3, "programs/matrix.py", str(count), "device", WINDLASS_TRANSPORT=transport)
    checked = [int(cases) for cases in re.findall(r"checked (\d+)", wrote)]
    assert len(checked) == 3 and min(checked) > 150, checked


def test_what_is_wrong_with_device_memory_is_told(job):
    assert job(2, "programs/device.py").count("device memory was right") == 2


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_blocks_of_different_lengths_and_lists_of_arrays(job, ranks, transport):
    wrote = job(ranks, "programs/uneven.py", WINDLASS_TRANSPORT=transport)
    checked = [int(cases) for cases in re.findall(r"checked (\d+)", wrote)]
    assert len(checked) == ranks and min(checked) > 1000, checked


@pytest.mark.parametrize("ranks", [2, 3])
def test_wrong_arguments_are_told_and_start_nothing(job, ranks):
    assert job(ranks, "programs/arguments.py").count("went on") == ranks


@pytest.mark.parametrize(
    "life", ["freed_in_flight", "asynchronous", "threads", "fork", "interrupt", "broken_operators", "limited", "registered", "exit_with_pending", "exit_at_once"]
)
def test_lives(job, life):
    assert job(2, "programs/life.py", life).count("is through") == 2


def test_errors_name_the_culprit(job):
    assert job(2, "programs/life.py", "errors").count("is through") == 1


def test_an_operation_out_of_time_is_told(job):
    program = "programs/late.py"
    assert "waits on [1]" in job(2, program, WINDLASS_TIMEOUT="1", WINDLASS_REPORT_AFTER="0")


def test_a_wrong_environment_is_a_join_error():
    code = "import windlass\ntry: windlass.init()\nexcept windlass.JoinError as e: print(e.variable)"
    environment = {**os.environ, "WORLD_SIZE": "two", "RANK": "0"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ended.stdout == "WORLD_SIZE\n", ended.stderr


def test_tensors_of_torch(job):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    assert job(2, "programs/tensors.py").count("tensors are right") == 2


@pytest.mark.parametrize("example", ["numpy_all_reduce", "asyncio_overlap", "device_memory", "torch_tensors"])
def test_examples(job, example):
    if "torch" in example and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    assert job(2, EXAMPLES / f"{example}.py").count("rank") >= 2


def test_what_a_call_costs_can_be_measured(job):
    assert len(re.findall(r"\d\.\d\d  \w+", job(2, EXAMPLES / "overhead.py", "2"))) == 6


def twins():
    """The README's program for mpi4py and the same for windlass."""
    text = (EXAMPLES.parent / "README.md").read_text()
    blocks = [block.split("```")[0] for block in text.split("## Beside mpi4py")[1].split("```python\n")[1:3]]
    assert "MPI.COMM_WORLD" in blocks[0] and "windlass.init()" in blocks[1]
    return blocks


def eigenvalue(wrote):
    return re.search(r"largest eigenvalue: (2\.\d+)", wrote)[1]


def test_the_readme_s_program(job, tmp_path):
    (tmp_path / "program.py").write_text(twins()[1])
    assert eigenvalue(job(3, tmp_path / "program.py")) == "2.3768965057"


def test_the_readme_s_program_says_what_mpi4py_s_does(tmp_path):
    beside = Path(sys.executable).parent / "mpiexec"
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None or importlib.util.find_spec("mpi4py") is None:
        pytest.skip("mpi4py and mpiexec are not here")
    (tmp_path / "program.py").write_text(twins()[0])
    command = [mpiexec, "-n", "3", sys.executable, tmp_path / "program.py"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert eigenvalue(ended.stdout) == "2.3768965057"


def stub():
    """What the stub says of each method: its parameters."""
    tree = ast.parse((PACKAGE / "_native.pyi").read_text())
    classes = {c.name: c for c in tree.body if isinstance(c, ast.ClassDef)}
    parameters = lambda of: [a.arg for a in (*of.args, of.kwarg) if a is not None]
    return {
        name: {f.name: parameters(f.args) for f in c.body if isinstance(f, ast.FunctionDef)}
        for name, c in classes.items()
    }


def missing_faces(collectives, methods, stubs):
    """Collectives that have no method, no asynchronous twin, or no stub."""
    return [
        face for name in collectives for face in (name, f"{name}_async") if face not in methods or face not in stubs
    ]


def test_each_collective_has_its_faces():
    methods, stubs = dir(windlass.Communicator), stub()["Communicator"]
    assert missing_faces(_native.COLLECTIVES, methods, stubs) == []
    # The check can fail.
    assert missing_faces(["all_reduce", "unheard_of"], methods, stubs) == ["unheard_of", "unheard_of_async"]
    assert missing_faces(["barrier"], methods, {"barrier": []}) == ["barrier_async"]


@pytest.mark.parametrize("name", ["Communicator", "Operation", "Buffer", "Device", "DeviceBuffer", "Bell", "Registration"])
def test_stubs_and_methods_agree(name):
    kind, stubs = getattr(_native, name), stub()[name]
    for method, parameters in stubs.items():
        if not method.startswith("__") and callable(getattr(kind, method)):
            assert list(inspect.signature(getattr(kind, method)).parameters) == parameters, method
    public = {m for m in vars(kind) if not m.startswith("__")}
    assert public == {m for m in stubs if not m.startswith("__")}


def test_operators_and_types_are_the_runtime_s():
    assert [op.value for op in windlass.ReduceOp] == list(_native.OPERATORS)
    assert windlass.ReduceOp.SUM == "sum"
    comm = windlass.init()
    for name in windlass.DTYPES:
        assert comm.alloc(3, name).dtype == name
    assert comm.alloc((2, 2), "float64").dtype == "f64"
    comm.all_reduce(comm.alloc(3), windlass.ReduceOp.MAX)


def test_a_job_of_one_does_everything_in_place():
    numpy = pytest.importorskip("numpy")
    comm = windlass.init()
    x = numpy.arange(3.0)
    assert comm.all_reduce(x) is x and comm.all_gather(x).shape == (3,)
    assert numpy.array_equal(numpy.from_dlpack(comm.alloc((2, 3), "i32")), numpy.zeros((2, 3)))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("run -n 4 a.py x", "run -n 4 PYTHON a.py x"),
        ("run -n4 --transport=tcp a.py", "run -n4 --transport=tcp PYTHON a.py"),
        ("run -- a.py", "run -- PYTHON a.py"),
        ("run -x A=b.py -n 2 python a.py", "run -x A=b.py -n 2 python a.py"),
        ("run --ranks 2 ./train a.py", "run --ranks 2 ./train a.py"),
        ("bench all_reduce", "bench all_reduce"),
        ("run -n", "run -n"),
        ("", ""),
    ],
)
def test_scripts_are_run_by_this_interpreter(given, expected):
    assert with_interpreter(given.split()) == expected.replace("PYTHON", sys.executable).split()


def test_the_command_starts_ranks():
    script = str(EXAMPLES / "numpy_all_reduce.py")
    command = [sys.executable, "-m", "windlass", "run", "-n", "2", script]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0 and ended.stdout.count("of 2: every element is 0.5") == 2, ended.stderr
