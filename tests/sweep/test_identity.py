import pytest

from mnist_lit.sweep.identity import MAX_NAME_LENGTH, job_name, sweep_name


def test_a_job_is_named_by_its_swept_values_in_order() -> None:
    overrides = ["data=sample", "optimizer.lr=0.1", "data.batch_size=128", "seed=3"]
    assert job_name(["optimizer.lr", "data.batch_size", "seed"], overrides) == "lr=0.1,batch_size=128,seed=3"


def test_a_key_that_is_taken_out_first_has_its_new_value() -> None:
    assert job_name(["loss"], ["+loss=mine", "~loss"]) == "loss=mine"


def test_drawn_numbers_are_short() -> None:
    overrides = ["optimizer.lr=0.0012345678901234", "model.dropout=1.2345678901e-07", "data.batch_size=1234567890"]
    keys = ["optimizer.lr", "model.dropout", "data.batch_size"]
    assert job_name(keys, overrides) == "lr=0.00123457,dropout=1.23457e-07,batch_size=1234567890"


def test_keys_that_would_look_alike_stay_whole() -> None:
    keys = ["optimizer.lr", "scheduler.lr", "seed"]
    assert sweep_name(keys, None) == "optimizer.lr,scheduler.lr,seed"


def test_an_experiment_names_a_sweep_unless_it_is_swept() -> None:
    assert sweep_name(["optimizer.lr"], "tuned") == "tuned,lr"
    # The command knows of no experiment, each job of another.
    assert {sweep_name(["experiment", "seed"], experiment) for experiment in (None, "tuned", "blog")} == {
        "experiment,seed"
    }


def test_added_keys_and_slashes_make_folder_names() -> None:
    overrides = ["+trainer.max_steps=5", "callbacks.checkpoint.monitor=val/loss"]
    assert job_name(["trainer.max_steps", "callbacks.checkpoint.monitor"], overrides) == "max_steps=5,monitor=val_loss"


def test_names_hold_nothing_that_windows_forbids() -> None:
    keys = ["hydra/launcher", "data.root"]
    assert sweep_name(keys, None) == "hydra_launcher,root"
    assert job_name(keys, ["hydra/launcher=a", 'data.root=C:\\<b>"|?*/c']) == "hydra_launcher=a,root=C___b______c"


def test_long_names_are_cut_and_stay_unique() -> None:
    names = {job_name(["model.hidden_sizes"], [f"model.hidden_sizes=[{'9,' * 100}{last}]"]) for last in (1, 2)}
    assert len(names) == 2
    assert {len(name) for name in names} == {MAX_NAME_LENGTH}


@pytest.mark.parametrize("keys", [[], ["seed"]])
def test_a_sweep_has_a_name_whatever_is_swept(keys: list[str]) -> None:
    assert sweep_name(keys, None) == ("seed" if keys else "single")


def test_names_in_any_alphabet_fit_a_file_system() -> None:
    names = [job_name(["data.source_dir"], [f"data.source_dir={'数' * 85}/{end}"]) for end in "ab"]
    assert len(set(names)) == 2
    assert all(len(name.encode()) <= 255 and name.startswith("source_dir=数数") for name in names)
