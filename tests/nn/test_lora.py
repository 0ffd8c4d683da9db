"""Low-rank adapters: their factors, the networks they are put on, and files that peft reads."""

import json

import pytest
import torch
from torch import nn
from torch.func import functional_call

from pyro_ext.checkpoint import CheckpointError
from pyro_ext.nn import LoRALinear, add_lora, load_lora, lora_layers, save_lora


def adapted_layer(num_in=9, num_out=6, rank=4, **options):
    layer = LoRALinear(nn.Linear(num_in, num_out), rank, **options)
    nn.init.normal_(layer.B)
    return layer


class Tree(nn.Module):
    """Layers that are shared, nested, and of other kinds."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.block = nn.ModuleDict({"query": nn.Linear(5, 5), "conv": nn.Conv1d(1, 1, 1)})
        self.again = self.block["query"]
        self.norm = nn.LayerNorm(5)

    def forward(self, x):
        hidden = self.block["conv"](self.block["query"](self.first(x).tanh())[:, None])[:, 0]
        return self.norm(self.again(hidden.tanh()))


# Factors


@pytest.mark.parametrize("shape", [(9, 6, 4), (6, 9, 6), (9, 3, 4), (5, 5, 1)])
def test_refactorization_keeps_the_product(shape, float64):
    """Also where outputs are fewer than the rank, and from any factors."""
    layer = adapted_layer(*shape)
    before = layer.delta().detach()
    layer.refactorize()
    rank = shape[2]
    torch.testing.assert_close(layer.delta(), before, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.A @ layer.A.T, torch.eye(rank))
    gram = layer.B.T @ layer.B
    torch.testing.assert_close(gram, gram.diag().diag())
    size = min(shape[1], rank)
    torch.testing.assert_close(gram.diag().sqrt()[:size], torch.linalg.svdvals(before)[:size])
    assert not bool(layer.B[:, size:].any())


def test_refactorization_in_single_precision():
    """To 1e-5, as the spec of FedSVD asks for."""
    layer = adapted_layer(784, 128, 8)
    before = layer.delta().detach()
    layer.refactorize()
    assert float((layer.delta().detach() - before).norm() / before.norm()) < 1e-5
    torch.testing.assert_close(layer.A @ layer.A.T, torch.eye(8), atol=1e-5, rtol=0.0)


def test_factors_in_half_precision():
    for layer in (adapted_layer(784, 128, 8), LoRALinear(nn.Linear(784, 128), 8)):
        layer.bfloat16()
        before = layer.delta().detach().float()
        layer.orthonormalize()
        torch.testing.assert_close(layer.delta().float(), before, atol=0.05, rtol=0.0)
        gram = (layer.A @ layer.A.T).float()
        torch.testing.assert_close(gram, torch.eye(8), atol=0.02, rtol=0.0)


def least_cosine(A, B):
    """Of the principal angles between two row spaces."""
    bases = [torch.linalg.qr(rows.detach().T).Q for rows in (A, B)]
    return float(torch.linalg.svdvals(bases[0].T @ bases[1]).min())


def test_rows_stay_in_their_space(float64):
    """Where the product has not full rank, too; and nothing happens while it is zero."""
    layer = LoRALinear(nn.Linear(9, 6), 4)
    start = layer.A.detach().clone()
    layer.refactorize()
    assert torch.equal(layer.A, start)
    with torch.no_grad():
        layer.B[:, 1] = torch.randn(6)
    layer.refactorize()
    assert least_cosine(layer.A, start) > 1 - 1e-12
    torch.testing.assert_close(layer.A @ layer.A.T, torch.eye(4))


def test_orthonormal_rows_of_a_new_adapter(float64):
    layer = LoRALinear(nn.Linear(9, 6), 4)
    start = layer.A.detach().clone()
    layer.orthonormalize()
    torch.testing.assert_close(layer.A @ layer.A.T, torch.eye(4))
    assert least_cosine(layer.A, start) > 1 - 1e-12 and not bool(layer.delta().any())


def test_gradient_is_bounded_by_the_inputs(float64):
    """FedSVD: no gradient of B is larger than that of outputs times inputs, equal in the rows."""
    layer = adapted_layer(train_A=False)
    layer.refactorize()
    for x in [*torch.randn(1000, 9), torch.randn(4) @ layer.A.detach()]:
        outputs = layer(x)
        weights = torch.randn(6)
        (gradient,) = torch.autograd.grad(outputs @ weights, layer.B)
        ratio = float(gradient.norm() / (weights.norm() * x.norm()))
        assert ratio < 1 + 1e-12
    assert ratio == pytest.approx(1.0, abs=1e-12)


def test_with_a_square_factor_a_step_is_one_of_the_weight(float64):
    layer = adapted_layer(5, 6, 5, train_A=False)
    layer.refactorize()
    x, weight = torch.randn(3, 5), layer.weight.detach().requires_grad_()
    (of_B,) = torch.autograd.grad(layer(x).cos().sum(), layer.B)
    outputs = nn.functional.linear(x, weight, layer.bias).cos().sum()
    (of_weight,) = torch.autograd.grad(outputs, weight)
    torch.testing.assert_close(of_B @ layer.A, of_weight)


# Networks


def test_adapters_on_a_network(subtests):
    network = Tree()
    x = torch.randn(3, 4)
    before, state = network(x), {k: v.clone() for k, v in network.state_dict().items()}
    adapted = add_lora(network, ["*.query", "first"], rank=2, alpha=3.0, train_A=False)
    layers = lora_layers(adapted)
    assert list(layers) == ["first", "block.query"] and adapted.again is layers["block.query"]
    trained = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert trained == ["first.B", "block.query.B"]
    torch.testing.assert_close(adapted(x), before)
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    assert all(p.requires_grad for p in network.parameters())


def test_what_reads_the_weight_finds_it_adapted():
    attention = nn.MultiheadAttention(6, 2, batch_first=True)
    adapted = add_lora(attention, ["out_proj"], rank=2)
    nn.init.normal_(adapted.out_proj.B)
    x = torch.randn(2, 3, 6)
    with torch.no_grad():
        before = attention(x, x, x)[0]
        assert not torch.allclose(adapted(x, x, x)[0], before)
        attention.out_proj.weight.copy_(adapted.out_proj.weight)
        torch.testing.assert_close(adapted(x, x, x)[0], attention(x, x, x)[0])


def test_a_layer_may_be_the_network():
    adapted = add_lora(nn.Linear(3, 2), rank=1)
    assert isinstance(adapted, LoRALinear)


def test_dropout_is_of_the_adapter_in_training():
    layer, x = adapted_layer(dropout=0.5), torch.randn(3, 9)
    whole = layer.base(x) + x @ layer.delta().T
    assert not torch.allclose(layer(x), whole)
    torch.testing.assert_close(layer.eval()(x), whole)


def test_errors_say_what_a_network_lacks(subtests):
    cases = {
        "of a convolution": (Tree(), dict(layers=["*.conv"]), r"layers .*\(Conv1d\)"),
        "of nothing": (Tree(), dict(layers=["value"]), "layers .*'value', which names no layer"),
        "no linear layers": (nn.Conv2d(1, 1, 1), {}, "module must have a torch.nn.Linear.*Conv2d"),
        "large rank": (Tree(), dict(rank=5), "rank must be at most the 4 inputs of layer 'first'"),
        "twice": (add_lora(Tree(), rank=1), {}, "module must have no adapters yet"),
    }
    for name, (module, options, message) in cases.items():
        with subtests.test(name), pytest.raises(ValueError, match=message):
            add_lora(module, **options)


# Files


def random_adapters(network, **options):
    adapted = add_lora(network, **options)
    for layer in lora_layers(adapted).values():
        nn.init.normal_(layer.B)
    return adapted


def test_files_come_back(tmp_path):
    network, x = Tree(), torch.randn(3, 4)
    adapted = random_adapters(network, rank=3, alpha=5.0, dropout=0.1)
    save_lora(adapted, tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    found = load_lora(network, tmp_path / "new")
    assert torch.equal(found.eval()(x), adapted.eval()(x))
    assert lora_layers(found)["first"].dropout == 0.1


@pytest.mark.slow  # peft takes seconds to import
@pytest.mark.filterwarnings("ignore")
def test_files_of_peft(tmp_path, subtests):
    """In both directions, with a rank and scale of each layer."""
    peft = pytest.importorskip("peft")
    x = torch.randn(3, 4)

    def network():
        torch.manual_seed(0)
        inner = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Tanh())
        return nn.Sequential(inner, nn.Linear(4, 4), nn.Linear(4, 3))

    settings = {
        "plain": dict(r=2, lora_alpha=4, target_modules=["1", "2"]),
        "of one layer": dict(r=2, lora_alpha=3, target_modules=["0.2"]),
        "patterns": dict(
            r=2, target_modules=["1", "2"], rank_pattern={"0.2": 3}, alpha_pattern={"^2": 7}
        ),
        "root": dict(r=4, lora_alpha=3, target_modules=["1"], use_rslora=True),
    }
    for name, options in settings.items():
        with subtests.test(name):
            theirs = peft.get_peft_model(network(), peft.LoraConfig(**options))
            for key, parameter in theirs.named_parameters():
                if "lora_B" in key:
                    nn.init.normal_(parameter)
            theirs.save_pretrained(tmp_path / name)
            ours = load_lora(network(), tmp_path / name)
            torch.testing.assert_close(ours(x), theirs(x))
            save_lora(ours, tmp_path / f"{name}, ours")
            back = peft.PeftModel.from_pretrained(network(), tmp_path / f"{name}, ours")
            torch.testing.assert_close(back(x), theirs(x))
    theirs = peft.get_peft_model(network(), peft.LoraConfig(target_modules=["1"], use_dora=True))
    theirs.save_pretrained(tmp_path / "dora")
    with pytest.raises(CheckpointError, match="use_dora"):
        load_lora(network(), tmp_path / "dora")


def test_damaged_files(tmp_path, subtests):
    """Each is refused with its path, and what is wrong."""
    network = nn.Sequential(nn.Linear(4, 5))
    save_lora(add_lora(network, rank=2), tmp_path)
    config, weights = (tmp_path / f"adapter_{n}" for n in ("config.json", "model.safetensors"))
    good = config.read_text(), weights.read_bytes()
    settings = json.loads(good[0])

    def refused(message, module=network):
        with pytest.raises(CheckpointError, match=message) as caught:
            load_lora(module, tmp_path)
        assert str(tmp_path) in str(caught.value)

    with subtests.test("networks"):
        refused("'0', which in the network is a Conv1d", nn.Sequential(nn.Conv1d(1, 1, 1)))
        refused("'0', which in the network is missing", nn.ModuleDict({"a": nn.Linear(4, 5)}))
        refused("do not match layer '0'", nn.Sequential(nn.Linear(3, 5)))
    for key, value in (("peft_type", "IA3"), ("bias", "all"), ("init_lora_weights", "pissa")):
        with subtests.test(key):
            config.write_text(json.dumps({**settings, key: value}))
            refused(value)
    with subtests.test("text"):
        config.write_text(good[0][:20])
        refused("cannot be read")
    config.write_text(good[0])
    with subtests.test("cut"):
        weights.write_bytes(good[1][:-4])
        refused("cannot be read")
    with subtests.test("other names"):
        weights.write_bytes(good[1].replace(b"lora_A", b"lora_E"))
        refused("lora_E.weight', which is no factor")
    with subtests.test("pickle"):
        weights.unlink()
        (tmp_path / "adapter_model.bin").write_bytes(b"")
        refused("may execute")


def test_gradients_through_functional_calls():
    """Parameters by name are those of the adapters."""
    adapted = add_lora(nn.Sequential(nn.Linear(4, 5)), rank=2)
    values = {"0.B": torch.ones(5, 2), "0.A": torch.ones(2, 4)}
    outputs = functional_call(adapted, values, (torch.ones(1, 4),))
    torch.testing.assert_close(outputs, adapted[0].base(torch.ones(1, 4)) + 8.0)
