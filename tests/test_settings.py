"""One TOML file describes a project; every wrong field is named with its value and rule."""

from pathlib import Path
from typing import Any

import pytest

from neurovol.errors import UserError
from neurovol.projectfile import load_settings, parse_override, with_overrides
from neurovol.settings import Overrides, ProjectSettings, TrainSettings

SAMPLE = '[[samples]]\nname = "s"\nsource = "s.tif"\n'


def loaded(tmp_path: Path, text: str, **overrides: Any) -> ProjectSettings:
    file = tmp_path / "project.toml"
    file.write_text(text, encoding="utf-8")
    return load_settings(file, {key.replace("__", "."): value for key, value in overrides.items()})


def listed(sources: str) -> str:
    """A project of one sample of several sources."""
    return f'name = "p"\n[[samples]]\nname = "s"\nsource = {sources}\n'


def test_a_sample_may_have_several_sources_and_then_has_all_their_channels(tmp_path: Path) -> None:
    (sample,) = loaded(tmp_path, listed('["raw/ch0", "raw/ch1.tif"]')).samples
    assert sample.source == (Path("raw/ch0"), Path("raw/ch1.tif"))
    assert sample.channels_of(3) == (0, 1, 2)
    (sample,) = loaded(tmp_path, listed('["raw/ch0", "raw/ch1.tif"]') + "channels = [1]").samples
    assert sample.channels_of(3) == (1,)


def test_a_project_needs_a_name_and_a_sample_and_all_else_has_a_default(tmp_path: Path) -> None:
    settings = loaded(tmp_path, f'name = "p"\n{SAMPLE}')
    assert settings.train.alpha == 0.3
    assert settings.train.patch == (32, 64, 64)
    assert settings.convert.chunk == (32, 64, 64)
    assert settings.samples[0].channels_of(3) == (0,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SAMPLE, "name: Field required"),
        ('name = "p"', "declares no sample; give [[samples]], or an [inbox]"),
        (f'name = "../p"\n{SAMPLE}', "name = '../p'"),
        (f'name = "p"\n{SAMPLE}{SAMPLE}', 'two samples are called "s"'),
        (f'name = "p"\n{SAMPLE}[train]\nalpha = 1.5', "train.alpha = 1.5: Input should be less than or equal to 1"),
        (
            f'name = "p"\n{SAMPLE}[train]\npatch = [32, 30, 64]',
            "along y is not a multiple of the network's stride 4; use 32",
        ),
        (f'name = "p"\n{SAMPLE}[convert]\nshard = [100, 256, 256]', "not a whole number of chunks"),
        (f'name = "p"\n{SAMPLE}[[annotations]]\nsample = "t"\nsource = "a.tif"', 'names the sample "t"'),
        (f'name = "p"\n{SAMPLE}[[annotations]]\nsample = "s"\nsource = "phantom"', "needs a phantom sample"),
        (f'name = "p"\n{SAMPLE}[[annotations]]\nsample = "s"\nsource = "a"\nevery = 2\nslices = [1]', "not both"),
        (f'name = "p"\n{SAMPLE}phantom = {{seed = 1}}', "exactly one of them"),
        (listed("[]"), "samples.0.source = []: is neither a path nor a list of paths; give one, or several"),
        (listed("[3]"), "samples.0.source = [3]: is neither a path nor a list of paths"),
        (listed('["a", "b", "a"]'), "a is listed 2 times; each source is"),
        (listed('["a", "${NEUROVOL_NOT_SET}/b"]'), "environment variable NEUROVOL_NOT_SET, which is not set"),
        (f'name = "p"\n{SAMPLE}[cluster]\nkind = "address"', "`address` goes with"),
        ('name = "p"\n[inbox]\nmodel = "m"', "inbox.folder: Field required"),
        (
            'name = "p"\n[inbox]\nfolder = "in"\nmodel = "m"\nmarker = "DONE"\nsettle_s = 9',
            'give `marker` ("DONE") or `settle_s` (9), not both',
        ),
        (
            f'name = "p"\n{SAMPLE}[cluster]\nkind = "address"\naddress = "tcp://10.0.0.1:8786"',
            "not encrypted, so whoever reaches it can run code as you; use tls://",
        ),
        (f'name = "p"\n{SAMPLE}[cluster]\nkind = "slurm"\ngpus = 2', "jobs have theirs by job.gpus"),
        (
            f'name = "p"\n{SAMPLE}[cluster]\nkind = "slurm"\njob.walltime = "4h"',
            "cluster.job.walltime = '4h': \"4h\" is no walltime; write HH:MM:SS or D-HH:MM:SS",
        ),
        (
            f'name = "p"\n{SAMPLE}[[annotations]]\nsample = "s"\nsource = "a"\nvalues = {{neuron = 0}}',
            "background, neuron and ignore must differ",
        ),
    ],
)
def test_a_wrong_field_is_named_with_its_rule(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        loaded(tmp_path, text)
    assert said in str(error.value)
    assert str(tmp_path / "project.toml") in str(error.value)


def test_an_override_wins_over_the_file(tmp_path: Path) -> None:
    text = f'name = "p"\n{SAMPLE}[train]\nalpha = 0.5\nsteps = 7'
    settings = loaded(tmp_path, text, train__alpha=0.1)
    assert (settings.train.alpha, settings.train.steps) == (0.1, 7)


@pytest.mark.parametrize(
    ("text", "value"),
    [("train.steps=5", 5), ("train.patch=[8, 8, 8]", [8, 8, 8]), ("train.precision=bf16", "bf16"), ("a.b=true", True)],
)
def test_an_override_is_read_as_toml_or_as_text(text: str, value: Any) -> None:
    assert parse_override(text)[1] == value


def test_overrides_leave_the_rest_of_a_section_alone() -> None:
    raw = {"train": {"alpha": 0.5, "steps": 7}}
    assert with_overrides(raw, {"train.steps": 9}) == {"train": {"alpha": 0.5, "steps": 9}}
    assert raw["train"]["steps"] == 7


def test_a_run_forms_section_replaces_the_files() -> None:
    overrides = Overrides(train=TrainSettings(steps=3))
    assert overrides.tables["train"]["steps"] == 3
    assert list(overrides.tables) == ["train"]


def test_paths_may_name_environment_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAW", "/somewhere")
    settings = loaded(tmp_path, 'name = "p"\n[[samples]]\nname = "s"\nsource = "${RAW}/s.tif"')
    assert settings.samples[0].source == (Path("/somewhere/s.tif"),)


def test_annotations_tell_values_instances_and_the_raw_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARE", "/data")
    text = f'name = "p"\n{SAMPLE}[[annotations]]\nsample = "s"\nsource = "a.zip"\nevery = 1\n'
    (plain,) = loaded(tmp_path, text).annotations
    assert (plain.crop, plain.values.neuron) == (None, 1)
    more = 'crop = "${SHARE}/c.tif"\nvalues = {neuron = "instances", ignore = 7}'
    (given,) = loaded(tmp_path, text + more).annotations
    assert (given.crop, given.values.neuron, given.values.ignore) == ("/data/c.tif", "instances", 7)
    with pytest.raises(UserError, match="neuron"):
        loaded(tmp_path, text + 'values = {neuron = "all"}')


def test_a_project_may_have_no_sample_but_those_that_arrive(tmp_path: Path) -> None:
    settings = loaded(tmp_path, 'name = "p"\n[inbox]\nfolder = "in"\nmodel = "m"\nsample.voxel_size_um = [2, 1, 1]')
    assert settings.samples == ()
    assert settings.inbox is not None
    assert settings.inbox.sample.voxel_size_um == (2, 1, 1)
