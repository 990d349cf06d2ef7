"""Diffusion: what its notebook cannot check. (A wrong name loads the papers, and this module with them.)"""
import math
import pytest
import torch
from sparsedm.diffusion import Sampler, VP, alpha_bar, noise_loss, process, sample, time_of


def net(x, t): return .5*x


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="process .vpsde.; known: vp, vp-discrete, linear, scaled-linear, flow"):
        process("vpsde")
    with pytest.raises(ValueError, match="unknown process None"): alpha_bar(.5, None)
    known = "dpm-solver, dpm-solver-clipped, ddim, euler-maruyama, ddpm, flow-euler"
    with pytest.raises(ValueError, match=f"unknown sampler 'dpm'; known: {known}"): sample(net, [0], (2,), "dpm")


def test_processes_and_samplers_need_no_name():
    "Values that no registry has"
    def halfway(net, x, draw, steps, process): yield x/2 + 0*net(x, 1.)
    mine = VP("mine", beta=(.1, 12.))
    out = sample(net, [0, 1], (3,), Sampler("halfway", halfway, 1), process=mine)
    assert torch.equal(out, sample(net, [0, 1], (3,), Sampler("halfway", halfway, 1)))
    assert not torch.equal(sample(net, [0], (3,), process=mine), sample(net, [0], (3,)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_wrong_times_become_nan_on_a_gpu():
    "To look at them would make the processor wait"
    t = torch.tensor([.5, 1.5, math.nan], device="cuda")
    for name in ("vp", "linear", "flow"): assert alpha_bar(t, name).isnan().tolist() == [False, True, True]
    assert time_of(torch.tensor([-1., 1., 1e6], device="cuda")).isnan().tolist() == [True, False, True]
    x0 = torch.zeros(3, 2, device="cuda")
    assert noise_loss(net, x0, t, x0, reduction="none").isnan().tolist() == [False, True, True]
