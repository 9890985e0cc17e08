"""The linear layer by oneDNN: torch's own, to rounding, wherever it steps in, and to the bit wherever not."""

import copy
import warnings
from collections.abc import Callable
from runpy import run_path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mnist_lit import linear
from mnist_lit.linear import Linear
from mnist_lit.model import MLP

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture(autouse=True)
def _by_one_dnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "IS_FASTER", True)  # also on a processor where it is not


def is_by_one_dnn(outputs: Tensor) -> bool:
    return "ByOneDNN" in type(outputs.grad_fn).__name__


def layers(*, bias: bool = True, dtype: torch.dtype = torch.float32) -> tuple[Linear, nn.Linear]:
    """Return one of ours and torch's own, with the same weights."""
    torch.manual_seed(0)
    ours = Linear(784, 256, bias=bias, dtype=dtype)
    theirs = nn.Linear(784, 256, bias=bias, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Sums of hundreds of products are as exact as the largest of them, not as what is left of it."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def gradients(layer: nn.Linear, features: Tensor, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    features = features.clone().requires_grad_()
    layer.zero_grad()
    reduce(layer(features)).backward()
    found = {"features": features.grad} | {name: parameter.grad for name, parameter in layer.named_parameters()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("num_images", [64, 300, 512])
@pytest.mark.parametrize("bias", [True, False])
def test_same_outputs_and_gradients_to_rounding(num_images: int, bias: bool) -> None:
    ours, theirs = layers(bias=bias)
    features = torch.randn(num_images, 784)
    outputs = ours(features)
    assert is_by_one_dnn(outputs)
    assert_close(outputs, theirs(features))
    target = torch.randn(num_images, 256)
    for reduce in (
        lambda outputs: (outputs - target).square().mean(),
        Tensor.sum,  # its gradient is a single number, repeated without memory of its own
        lambda outputs: (outputs.t() * target.t()).sum(),
        lambda outputs: outputs[::2].sum(),
    ):
        expected = gradients(theirs, features, reduce)
        found = gradients(ours, features, reduce)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert_close(found[name], gradient)


def test_features_in_any_order_of_memory() -> None:
    ours, theirs = layers()
    for features in (
        torch.randn(784, 512).t(),
        torch.randn(512, 1568)[:, ::2],
        torch.randn(1, 784).expand(512, 784),
        torch.randn(2000).unfold(0, 784, 1)[:512],  # its rows overlap
    ):
        assert is_by_one_dnn(ours(features))
        assert_close(ours(features), theirs(features))
        assert_close(gradients(ours, features, Tensor.sum)["weight"], gradients(theirs, features, Tensor.sum)["weight"])


def test_gives_the_same_bits_again() -> None:
    ours, _ = layers()
    features = torch.randn(512, 784)
    first, second = (gradients(ours, features, lambda outputs: outputs.square().mean()) for _ in range(2))
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name])
    assert torch.equal(ours(features), ours(features))


def test_computes_only_the_gradients_that_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = layers()
    forward, shapes = linear._ByOneDNN.forward, []

    def counted(ctx: Any, left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append((len(left), len(right)))
        return forward(ctx, left, right, bias)

    monkeypatch.setattr(linear._ByOneDNN, "forward", staticmethod(counted))
    ours(torch.randn(512, 784)).sum().backward()  # images need none
    assert shapes == [(512, 256), (256, 784)]
    ours.requires_grad_(False)
    ours(torch.randn(512, 784, requires_grad=True)).sum().backward()
    assert shapes[2:] == [(512, 256), (512, 784)]


def test_without_gradients_and_copied() -> None:
    ours, _ = layers()
    features = torch.randn(512, 784)
    expected = ours(features).detach()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(ours(features), expected)
    assert torch.equal(copy.deepcopy(ours)(features), expected)


def test_the_network_has_such_layers() -> None:
    model = MLP(in_features=784, hidden_sizes=[256, 64], activation="ReLU", dropout=0.0, num_classes=10)
    inner = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert [type(layer) for layer in inner] == [Linear] * 3
    used = []
    for layer in inner:
        layer.register_forward_hook(lambda layer, inputs, outputs: used.append(is_by_one_dnn(outputs)))
    model(torch.randn(512, 28, 28))
    assert used == [True, True, False]  # the last one is too small


PLAIN = {
    "few images": torch.zeros(10, 784),
    "no images": torch.zeros(0, 784),
    "float64": torch.zeros(512, 784, dtype=torch.float64),
    "more dimensions": torch.zeros(16, 32, 784),
    "switched off": torch.zeros(512, 784),
    "slower": torch.zeros(512, 784),
}


@pytest.mark.parametrize("case", PLAIN)
def test_elsewhere_it_is_torchs_own_to_the_bit(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn_like(PLAIN[case])
    ours, theirs = layers(dtype=features.dtype)
    monkeypatch.setattr(linear, "IS_FASTER", case != "slower")
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", case != "switched off")
    outputs = ours(features)
    assert not is_by_one_dnn(outputs)
    assert torch.equal(outputs, theirs(features))


def test_autocast_has_its_own_precision() -> None:
    ours, theirs = layers()
    features = torch.randn(512, 784)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = ours(features)
        assert outputs.dtype == torch.bfloat16
        assert torch.equal(outputs, theirs(features))


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")  # torch.compile's own advice
def test_programs_that_take_the_network_apart_find_torchs_own() -> None:
    ours, _ = layers()
    features = torch.randn(512, 784)
    batch = torch.export.Dim("batch")  # of any size
    graphs = [
        torch.fx.symbolic_trace(ours).graph,
        torch.export.export(ours, (features,), dynamic_shapes={"input": {0: batch}}).graph,
    ]

    def keep(program: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(program.graph)
        return program.forward

    torch.compile(ours, backend=keep, fullgraph=True)(features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates these two; TensorBoard's graphs need the first
        graphs += [torch.jit.trace(ours, features).graph, torch.jit.script(ours).graph]
    assert len(graphs) == 5
    for graph in graphs:
        assert "linear" in str(graph)
        assert "mkldnn" not in str(graph)
        assert "ByOneDNN" not in str(graph)


def test_a_wrong_width_is_told_in_torchs_words() -> None:
    ours, theirs = layers()
    features = torch.randn(512, 783)
    with pytest.raises(RuntimeError) as told:
        theirs(features)
    with pytest.raises(RuntimeError) as ours_told:
        ours(features)
    assert str(ours_told.value) == str(told.value)


def test_second_derivatives_are_torchs() -> None:
    ours, theirs = layers()
    features = torch.randn(512, 784)
    found = []
    for layer in (ours, theirs):
        layer.zero_grad()
        inputs = features.clone().requires_grad_()
        outputs = layer(inputs)
        assert is_by_one_dnn(outputs) == (layer is ours)
        (gradient,) = torch.autograd.grad(outputs.sum() + inputs.square().sum(), inputs, create_graph=True)
        gradient.square().sum().backward()  # as penalties of gradients do

        def loss(inputs: Tensor, layer: nn.Linear = layer) -> Tensor:
            outputs: Tensor = layer(inputs)
            return outputs.square().mean()

        _, of_hessian = torch.autograd.functional.hvp(loss, features, torch.ones_like(features))
        assert inputs.grad is not None
        assert layer.weight.grad is not None
        found.append((inputs.grad, layer.weight.grad, of_hessian))
    for mine, expected in zip(*found, strict=True):
        assert expected.abs().max() > 0
        assert_close(mine, expected)


def test_a_bias_of_any_layout_is_read_as_it_is() -> None:
    ours, theirs = layers()
    features = torch.randn(512, 784)
    for bias in (torch.randn(256, 4)[:, 0], torch.randn(1).expand(256), torch.randn(512)[::2]):
        mine = torch.func.functional_call(ours, {"bias": bias}, (features,))
        assert is_by_one_dnn(mine)
        assert_close(mine, torch.func.functional_call(theirs, {"bias": bias}, (features,)))
    one = torch.randn(1)  # which torch adds to all
    mine, expected = (torch.func.functional_call(layer, {"bias": one}, (features,)) for layer in (ours, theirs))
    assert torch.equal(mine, expected)


def test_a_parametrization_is_computed_once() -> None:
    class Counted(nn.Module):
        calls = 0

        def forward(self, weight: Tensor) -> Tensor:
            self.calls += 1
            return weight * 2

    ours, _ = layers()
    counted = Counted()
    nn.utils.parametrize.register_parametrization(ours, "weight", counted)
    for num_images in (512, 10):
        counted.calls = 0
        ours(torch.randn(num_images, 784))
        assert counted.calls == 1


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which torch itself uses for forward_ad
def test_transforms_of_functions_find_torchs_own() -> None:
    ours, theirs = layers()
    features = torch.randn(3, 512, 784)
    parameters: dict[str, Tensor] = dict(theirs.named_parameters())
    found = []
    for layer in (ours, theirs):

        def loss(parameters: dict[str, Tensor], layer: nn.Linear = layer) -> Tensor:
            outputs: Tensor = torch.func.functional_call(layer, parameters, (features[0],))
            return outputs.square().mean()

        with torch.autograd.forward_ad.dual_level():
            outputs = layer(torch.autograd.forward_ad.make_dual(features[0], features[1]))
            tangent = torch.autograd.forward_ad.unpack_dual(outputs).tangent
        assert tangent is not None
        found.append((torch.func.grad(loss)(parameters)["weight"], torch.vmap(layer)(features), tangent))
    for mine, expected in zip(*found, strict=True):
        assert torch.equal(mine, expected)


AMD = {"cpu_name": "AMD EPYC"}


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch has no MKL")
@pytest.mark.parametrize(
    ("capability", "told", "expected"),
    [
        ("AVX512", AMD, True),
        ("AVX2", AMD, False),
        ("AVX512", {"cpu_name": "Intel(R) Xeon(R) Processor"}, False),
        ("AVX512", {}, False),  # by an older torch
    ],
)
def test_used_where_an_amd_processor_has_avx_512(
    capability: str, told: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert run_path(linear.__file__)["IS_FASTER"] == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in an even older one
    assert not run_path(linear.__file__)["IS_FASTER"]
