"""Masked autoencoders: masks, losses and positions in closed form, and the Pyro model."""

import math
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_ext.handlers import consistency
from pyro_ext.inference.training import TrainingDiverged
from pyro_ext.models.vision import MaskedAutoencoder
from pyro_ext.nn import MeanTeacher
from pyro_ext.testing.nn import check_module
from tests.killing import Killed, stopping

small = partial(MaskedAutoencoder, (2, 6, 4), 2, width=8, depth=1, num_heads=2, decoder_width=8)


@pytest.fixture(autouse=True)
def seeded():
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield
    pyro.clear_param_store()


def images(n=5, shape=(2, 6, 4)):
    return torch.rand(n, *shape)


class TestPatches:
    @pytest.mark.parametrize("shape, side", [((1, 28, 28), 4), ((3, 4, 8), 2), ((2, 5, 3), 1)])
    def test_images_come_back(self, shape, side):
        network, x = MaskedAutoencoder(shape, side), images(3, shape)
        patches = network.patchify(x)
        assert patches.shape == (3, network.num_patches, shape[0] * side**2)
        assert torch.equal(network.unpatchify(patches), x)
        row, column = network.grid[0] - 1, network.grid[1] - 2  # rows first, and channels last
        block = x[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
        expected = block.permute(0, 2, 3, 1).flatten(1)
        assert torch.equal(patches[:, row * network.grid[1] + column], expected)

    @pytest.mark.parametrize("ratio, hidden", [(0.75, 5), (0.5, 3), (0.9, None), (1 / 6, 1)])
    def test_so_many_are_hidden(self, ratio, hidden):
        if hidden is None:
            with pytest.raises(ValueError, match="mask_ratio must leave visible and hidden ones"):
                small(mask_ratio=ratio)
            return
        network = small(mask_ratio=ratio)
        visible = network.visible(network.random_order(4, seed=1))
        assert visible.dtype == torch.bool and int((~visible).sum()) == 4 * hidden

    def test_the_first_of_an_order_are_visible(self):
        network = small(mask_ratio=0.5)
        order = torch.tensor([[4, 1, 3, 0, 2, 5]])
        assert network.visible(order)[0].nonzero().flatten().tolist() == [1, 3, 4]
        counts = network.visible(network.random_order(3000, seed=0)).float().mean(0)
        assert float((counts - 0.5).abs().max()) < 0.05  # more than five standard errors

    def test_targets_are_scaled_by_each_patch(self):
        network, x = small(normalize=True), images()
        targets, patches = network.targets(x), network.patchify(x)
        expected = (patches[1, 2] - patches[1, 2].mean()) / (patches[1, 2].var() + 1e-6).sqrt()
        torch.testing.assert_close(targets[1, 2], expected)
        assert not small().targets(x).ne(patches).any()
        assert torch.equal(network.targets(torch.ones_like(x)), torch.zeros_like(targets))


class TestNetwork:
    @pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
    def test_what_all_modules_have_in_common(self):
        order = small().random_order(5, seed=0)
        check_module(lambda: small(decoder_heads=2), images(), order)

    def test_a_copy_without_gradients_is_the_same_bit_for_bit(self):
        network, x = MaskedAutoencoder((1, 28, 28)), images(20, (1, 28, 28))
        order = network.random_order(20)
        assert torch.equal(network(x, order), MeanTeacher(network)(x, order))

    def test_hidden_patches_have_no_influence(self):
        network, x = small(), images()
        order = network.random_order(5, seed=1)
        hidden = ~network.visible(order)
        other = network.unpatchify(network.patchify(x) + hidden[..., None].float())
        assert torch.equal(network(x, order), network(other, order))
        seen = network.unpatchify(network.patchify(x) + (~hidden)[..., None].float())
        assert not torch.allclose(network(x, order), network(seen, order))

    def test_only_which_patches_are_visible_matters(self):
        network, x = small(mask_ratio=0.5), images(1)
        first = network(x, torch.tensor([[4, 1, 3, 0, 2, 5]]))
        other = network(x, torch.tensor([[1, 3, 4, 5, 2, 0]]))
        torch.testing.assert_close(first, other)

    def test_positions_are_sines_and_cosines_and_fixed(self):
        """As in the code of the paper: half for columns, half for rows, zero for the token."""
        network = MaskedAutoencoder((1, 8, 12), 4, width=16, num_heads=2)
        omega = 1.0 / 10000 ** (np.arange(4) / 4)
        positions = network.encoder_positions.numpy()
        assert not positions[0].any() and positions.shape == (7, 16)
        for row in range(2):
            for column in range(3):
                expected = [f(p * omega) for p in (column, row) for f in (np.sin, np.cos)]
                found = positions[1 + row * 3 + column]
                np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-6)
        assert not network.encoder_positions.requires_grad
        assert "encoder_positions" not in network.state_dict()

    def test_a_block_is_that_of_pytorch(self):
        block = small().encoder[0].double()
        layer = nn.TransformerEncoderLayer(
            8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True, dtype=torch.float64
        ).train()
        attention = layer.self_attn
        pairs = [
            (attention.in_proj_weight, block.projections.weight),
            (attention.in_proj_bias, block.projections.bias),
            (attention.out_proj.weight, block.attention.weight),
            (attention.out_proj.bias, block.attention.bias),
        ]
        with torch.no_grad():
            for to, of in pairs:
                to.copy_(of.normal_())
            layer.linear1.load_state_dict(block.feedforward[0].state_dict())
            layer.linear2.load_state_dict(block.feedforward[2].state_dict())
        x = torch.randn(3, 5, 8, dtype=torch.float64)
        torch.testing.assert_close(block(x), layer(x), atol=1e-12, rtol=0)

    def test_first_weights(self):
        network = MaskedAutoencoder((1, 28, 28), width=64)
        for module in network.modules():
            if isinstance(module, nn.Linear):
                bound = math.sqrt(6 / (module.in_features + module.out_features))
                assert 0.9 * bound < float(module.weight.detach().abs().max()) <= bound
                assert not module.bias.any()
        assert 0.01 < float(network.class_token.detach().std()) < 0.03

    def test_reconstructions_keep_what_is_visible(self):
        for network in (small(), small(normalize=True)):
            x, order = images(), network.random_order(5, seed=2)
            found = network.patchify(network.reconstruct(x, order))
            visible = network.visible(order)
            patches = network.patchify(x)
            assert torch.equal(found[visible], patches[visible])
            predicted = network(x, order)
            if network.normalize:
                scale = (patches.var(-1, keepdim=True) + 1e-6).sqrt()
                predicted = predicted * scale + patches.mean(-1, keepdim=True)
            torch.testing.assert_close(found[~visible], predicted[~visible])
        assert network.features(x).shape == (5, 8)


class TestTerms:
    def test_they_are_means_over_hidden_patches(self):
        network, teacher, x = small(), small(), images()
        order = network.random_order(5, seed=0)
        found = network.terms(x, order, teacher)
        prediction, hidden = network(x, order).detach(), ~network.visible(order)
        total = {
            name: sum(
                float((prediction[n, i] - of[n, i]).square().mean())
                for n in range(5)
                for i in range(6)
                if hidden[n, i]
            )
            for name, of in (
                ("target", network.patchify(x)),
                ("teacher", teacher(x, order).detach()),
            )
        }
        assert float(found.reconstruction.detach()) == pytest.approx(
            total["target"] / hidden.sum().item()
        )
        assert float(found.consistency.detach()) == pytest.approx(
            total["teacher"] / hidden.sum().item()
        )
        everywhere = network.terms(x, order, teacher, patches="all").consistency
        torch.testing.assert_close(everywhere, (prediction - teacher(x, order)).square().mean())

    def test_no_gradient_goes_into_a_teacher_that_could_take_one(self):
        network, teacher, x = small(), small(), images()
        found = network.terms(x, network.random_order(5, seed=0), teacher)
        (found.reconstruction + found.consistency).backward()
        assert all(p.grad is None for p in teacher.parameters())
        assert all(p.grad is not None for p in network.parameters())

    def test_a_new_teacher_adds_nothing_and_gets_no_gradient(self):
        network, x = small(), images()
        teacher, order = MeanTeacher(network, 0.9), network.random_order(5, seed=0)
        found = network.terms(x, order, teacher)
        found.consistency.backward()
        assert float(found.consistency.detach()) == 0.0
        assert all(not p.grad.any() for p in network.parameters() if p.grad is not None)
        assert all(p.grad is None for p in teacher.parameters())
        assert torch.equal(teacher(x, order), teacher(x, order))


class TestFit:
    def trained(self, network=None, x=None, **options):
        torch.manual_seed(1)
        network = small() if network is None else network
        x = images(12) if x is None else x
        settings = {"num_steps": 6, "batch_size": 5, "seed": 0, "progress": False, **options}
        teacher = network.fit(x, **settings)
        return network, teacher

    def test_without_a_weight_it_is_a_plain_one_bit_for_bit(self):
        x = images(12)
        plain, _ = self.trained(x=x, consistency=0.0)
        same, teacher = self.trained(x=x, consistency=0.0, momentum=1.0)
        other, _ = self.trained(x=x, momentum=0.9)
        assert plain.losses == same.losses and plain.losses[:1] == other.losses[:1]
        assert plain.losses != other.losses
        assert all(map(torch.equal, plain.parameters(), same.parameters()))

    def test_the_teacher_is_the_average_after_each_step(self):
        torch.manual_seed(1)
        network = small()
        past = [network.prediction.weight.detach().clone()]

        class Adam(torch.optim.Adam):
            def step(self, closure=None):
                result = super().step(closure)
                past.append(network.prediction.weight.detach().clone())
                return result

        _, teacher = self.trained(network, momentum=0.5, optimizer=partial(Adam, lr=0.01))
        expected = past[0]
        for step, value in enumerate(past[1:]):
            momentum = 1 - 0.5 * (math.cos(math.pi * step / 6) + 1) / 2
            expected = momentum * expected + (1 - momentum) * value
        assert len(past) == 7
        torch.testing.assert_close(teacher.prediction.weight, expected)

    def test_it_goes_on_from_a_checkpoint_bit_for_bit(self, tmp_path):
        x, file = images(12), tmp_path / "training"
        whole, taught = self.trained(x=x)

        torch.manual_seed(1)
        stops = small()
        stops.terms = stopping(stops.terms, 5, Killed)
        with pytest.MonkeyPatch.context() as patch:
            from pyro_ext.inference.training import Trainer

            run = Trainer.run
            patch.setattr(Trainer, "run", lambda *a, **k: run(*a, **k, save_every=2))
            with pytest.raises(Killed):
                stops.fit(x, 6, batch_size=5, seed=0, checkpoint=file, progress=False)
            _, resumed = self.trained(x=x, seed=None, checkpoint=file)
        assert all(map(torch.equal, taught.parameters(), resumed.parameters()))

    def test_nan_and_huge_steps_are_told(self):
        with pytest.raises(TrainingDiverged, match="training diverged"):
            self.trained(num_steps=50, optimizer=partial(torch.optim.SGD, lr=1e20))


class TestPyro:
    def test_the_density_is_the_error(self):
        network, x = small(scale=0.3), images()
        trace = poutine.trace(network.model).get_trace(x)
        trace.compute_log_prob()
        order = trace.nodes["noise"]["value"].argsort(-1)
        hidden = 5 * 5 * 8  # images, patches, numbers
        error = float(network.terms(x, order).reconstruction.detach())
        expected = -hidden * (error / (2 * 0.09) + math.log(0.3) + 0.5 * math.log(2 * math.pi))
        found = float(trace.nodes["patches"]["log_prob_sum"].detach())
        assert found == pytest.approx(expected, rel=1e-5)
        assert float(trace.nodes["noise"]["log_prob_sum"]) == 0.0

    def test_elbo_and_loss_have_the_same_gradient(self):
        torch.manual_seed(2)
        network, teacher, x = small(scale=0.5), MeanTeacher(small(scale=0.5)), images()
        model = consistency(teacher.teacher.model, ["patches"], 0.7)(network.model)
        torch.manual_seed(3)
        loss = Trace_ELBO().differentiable_loss(model, network.guide, x)
        torch.manual_seed(3)
        terms = network.terms(x, network.random_order(5), teacher)
        weight = 5 * 5 * 8 / (2 * 0.25)
        wanted = weight * (terms.reconstruction + 0.7 * terms.consistency)
        parameters = list(network.parameters())
        found = torch.autograd.grad(loss, parameters)
        for one, two in zip(found, torch.autograd.grad(wanted, parameters), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
        assert all(p.grad is None for p in teacher.parameters())

    def test_a_part_of_the_images_stands_for_all(self):
        network, x = small(), images(6)
        trace = poutine.trace(network.model).get_trace(x, 2)
        assert trace.nodes["patches"]["scale"] == 3 and len(trace.nodes["images"]["value"]) == 2
        loss = Trace_ELBO().differentiable_loss(network.model, network.guide, x, 2)
        assert bool(loss.isfinite())
        with pytest.raises(ValueError, match="subsample_size must be at most the 6 images, got 7"):
            network.model(x, 7)


@pytest.mark.slow
def test_defaults_learn_what_they_were_not_made_for():
    """Smooth waves in color: hidden patches follow from visible ones."""
    place = torch.linspace(0, 1, 16)
    waves = (2 * math.pi * torch.rand(1200, 3, 1, 1) + 4 * place[:, None] + 3 * place).sin()
    x, test = waves[:1000], waves[1000:]
    network = MaskedAutoencoder((3, 16, 16), patch_size=4)
    teacher = network.fit(x, 600, batch_size=50, seed=0, progress=False)
    order = network.random_order(len(test), seed=0)
    distance = (network.patchify(test) - network.patchify(x).mean(0)).square().mean(-1)
    of_means = float(distance[~network.visible(order)].mean())
    for one in (network, teacher):
        with torch.no_grad():
            assert float(one.terms(test, order).reconstruction) < 0.1 * of_means
