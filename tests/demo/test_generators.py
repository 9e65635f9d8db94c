import json
from importlib.resources import files

import numpy as np
import pytest
import torch
from safetensors.torch import load

from causal_tune.demo.generators import GENERATORS, load_generator
from causal_tune.demo.photographs import photographs_of
from causal_tune.demo.train_generators import main, measure_psnr, psnr, train_generator
from causal_tune.errors import InvalidConfig, UnknownName, WeightsError

WEIGHTS = files("causal_tune.demo") / "weights"
TRAINING = json.loads((WEIGHTS / "training.json").read_text())
names = pytest.mark.parametrize("name", GENERATORS)


@pytest.fixture(autouse=True)
def one_thread():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@names
def test_shipped_weights_are_small_and_fit_the_network_strictly(name):
    data = (WEIGHTS / f"{name}.safetensors").read_bytes()
    assert len(data) < 1_000_000
    network = GENERATORS[name].build()
    network.load_state_dict(load(data), strict=True)
    assert all(value.isfinite().all() for value in load_generator(name).state_dict().values())


@names
def test_held_out_photographs_come_back_at_28_db_or_better(name):
    values = measure_psnr(load_generator(name), ("val", "selection", "test"), crops_per_split=6)
    assert values.mean() >= 28
    # and yet not as they were: something was lost
    assert values.max() < 45


@names
def test_the_training_record_says_how_and_on_what(name):
    record = TRAINING[name]
    assert record["psnr_held_out_db"] >= 28
    assert record["photographs"] == photographs_of("train")
    assert record["bytes"] == len((WEIGHTS / f"{name}.safetensors").read_bytes())
    assert f"--generator {name} --steps {record['num_steps']} " in record["command"]
    assert record["compression"] == GENERATORS[name].compression


def test_there_is_a_record_for_every_generator_and_no_other():
    assert set(TRAINING) == set(GENERATORS)


@names
def test_a_generator_keeps_size_and_range_and_depends_on_its_seed_alone(name):
    network = load_generator(name)
    images = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first, again = (network.regenerate(images, rng=torch.Generator().manual_seed(5)) for _ in range(2))
    assert first.shape == images.shape
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, images)


@names
def test_a_training_step_reaches_every_parameter(name):
    torch.manual_seed(0)
    network = GENERATORS[name].build()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    images = torch.rand(2, 3, 64, 64)
    # three times: what begins at zero, behind what begins at zero, passes gradients on from the third step
    for _ in range(3):
        optimizer.zero_grad()
        network.loss(images, progress=1.0, rng=torch.Generator().manual_seed(0)).backward()
        optimizer.step()
    without = [key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


def test_compression_is_values_in_over_values_of_the_bottleneck():
    pixels = 3 * 16 * 16
    images = torch.rand(1, 3, 16, 16)
    for name in ("vae", "deconv", "nearest"):
        latents = GENERATORS[name].build().get_submodule("encoder")(images)
        assert pixels / latents.numel() == GENERATORS[name].compression
    codebooks = GENERATORS["vq"].build().get_parameter("codebooks")
    bits = codebooks.shape[0] * np.log2(codebooks.shape[1]) * 4 * 4  # positions of a 16 x 16 image
    assert pixels * 8 / bits == GENERATORS["vq"].compression


def test_quantised_latents_are_codes_of_the_codebook():
    network = load_generator("vq")
    latents = torch.randn(2, 16, 3, 5, generator=torch.Generator().manual_seed(0))
    quantised = network._look_up(network._nearest_codes(latents), latents)
    for group, codebook in enumerate(network.codebooks):
        at = quantised[1, 2 * group : 2 * group + 2, 2, 4]
        wanted = latents[1, 2 * group : 2 * group + 2, 2, 4]
        nearest = codebook[(codebook - wanted).square().sum(dim=1).argmin()]
        torch.testing.assert_close(at, nearest)


def test_psnr_is_that_of_a_hand_calculation():
    image = torch.zeros(1, 3, 2, 2)
    other = image.clone()
    other[0, 0, 0, 0] = 12 / 255  # mean squared difference 144 / 12 = 12
    assert psnr(other, image).item() == pytest.approx(10 * np.log10(255**2 / 12), abs=1e-4)


def test_training_is_repeatable_and_the_command_writes_what_it_made(tmp_path, capsys):
    assert main(["-o", str(tmp_path), "--generator", "subpixel", "--steps", "2"]) == 0
    written = load((tmp_path / "subpixel.safetensors").read_bytes())
    trained = train_generator("subpixel", num_steps=2).state_dict()
    assert written.keys() == trained.keys()
    for key, value in trained.items():
        torch.testing.assert_close(written[key].float(), value, rtol=0, atol=0)
    assert list(json.loads((tmp_path / "training.json").read_text())) == ["subpixel"]


def test_no_training_steps_are_refused(tmp_path):
    with pytest.raises(InvalidConfig, match="give 1 or more"):
        train_generator("vae", num_steps=0)
    assert main(["-o", str(tmp_path), "--generator", "vae", "--steps", "0"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_and_unknown_names_say_what_to_do(monkeypatch, tmp_path):
    with pytest.raises(UnknownName, match="deconv"):
        load_generator("gan")
    monkeypatch.setattr("causal_tune.demo.generators.files", lambda package: tmp_path)
    with pytest.raises(WeightsError, match="train_generators"):
        load_generator("vae")
