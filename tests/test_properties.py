"""Properties of masks, packed weights, topologies, runs and records, stated apart from the code and tried on many inputs."""
import copy, json, math, os, re
from contextlib import contextmanager
from dataclasses import fields, replace
from unittest.mock import patch
import pytest, torch
from hypothesis import assume, example, given, settings, strategies as st
from torch import nn
from sparsedm import masking
from sparsedm.declare import DATASETS, EXTRACTORS, METHODS, PREPARE, PRESETS, PROCESSES, SAMPLERS, SCALES, SCHEDULES
from sparsedm.dynamic import Moves, counts, densities, draw_masks, grouped, layer_counts, prune_and_regrow, ungrouped
from sparsedm.files import write_sealed
from sparsedm.masking import nm_mask, nm_weight, parse_pattern, transposable_mask, why_dense
from sparsedm.models import build_model
from sparsedm.one_shot import asp_, asp_layer, one_shot_
from sparsedm.packing import is_24_legal, load_packed, pack, save_packed, unpack, why_not_24
from sparsedm.records import REQUIRED, SERIES, check_record, read_record, record_path, write_record
from sparsedm.run import Run, make_run
from sparsedm.ste import bake_, sparsify_, sparsity_of

settings.register_profile("fixed", derandomize=True, deadline=None, database=None, max_examples=100)
settings.load_profile("fixed")

DTYPES = torch.float32, torch.float64, torch.bfloat16, torch.float16
PATTERNS = (*masking.PATTERNS, "1:1", "1:2", "2:3", "5:8", "3:6", "4:16", "9:32")
TIES = st.sampled_from([0., -0., 1., -1., 2., -2., 6e-8])      # the last is below the normal numbers of float16
ANY = st.floats(width=16, allow_nan=False, allow_infinity=False)


@st.composite
def weights(draw, pattern=None, kernels=((), (3,), (2, 2))):
    "(a weight (out, in, *kernel), N, M), with ties or without."
    n, m = map(int, (pattern or draw(st.sampled_from(PATTERNS))).split(":"))
    shape = draw(st.integers(1, 3)), m * draw(st.integers(1, 2)), *draw(st.sampled_from(kernels))
    count = math.prod(shape)
    values = draw(st.lists(draw(st.sampled_from([TIES, ANY])), min_size=count, max_size=count))
    return torch.tensor(values, dtype=torch.float64).view(shape).to(draw(st.sampled_from(DTYPES))), n, m


def groups_of(x, m):
    "Lists of m neighbours along the inputs, at each place of the kernel."
    return x.movedim(1, -1).reshape(-1, m).tolist()


def bits(x): return x.contiguous().view(torch.uint8).tolist()


@contextmanager
def without_kernels():
    "The masks that PyTorch computes, where no kernel is built."
    with patch.object(masking, "kernels_for", lambda *args: None): yield


# masks

@given(weights(), st.booleans())
def test_a_mask_keeps_the_n_largest_of_every_m_and_of_equal_ones_the_last(drawn, in_torch):
    w, n, m = drawn
    if in_torch:
        with without_kernels(): mask = nm_mask(w, f"{n}:{m}")
    else: mask = nm_mask(w, f"{n}:{m}")
    assert mask.dtype == torch.bool and mask.shape == w.shape
    for values, kept in zip(groups_of(w, m), groups_of(mask, m)):
        by_size = sorted(range(m), key=lambda k: (abs(values[k]), k))
        assert [k for k in range(m) if kept[k]] == sorted(by_size[m - n:])


@given(weights(), st.booleans())
def test_a_masked_weight_has_its_values_or_plus_zero_and_stays_under_its_mask(drawn, in_torch):
    w, n, m = drawn
    pattern = f"{n}:{m}"
    mask = nm_mask(w, pattern)
    if in_torch:
        with without_kernels(): masked = nm_weight(w, pattern)
    else: masked = nm_weight(w, pattern)
    assert bits(masked) == bits(torch.where(mask, w, torch.zeros_like(w)))
    again = nm_weight(masked, pattern)
    assert torch.equal(again, masked)
    assert torch.equal(nm_mask(-w, pattern), mask)             # signs do not count
    assert torch.equal(nm_mask(w.double() * 8, pattern), nm_mask(w.double(), pattern))   # nor does a scale


@given(weights(), st.randoms(use_true_random=False))
def test_rows_and_places_of_a_kernel_have_masks_of_their_own(drawn, random):
    w, n, m = drawn
    mask, order = nm_mask(w, f"{n}:{m}"), random.sample(range(len(w)), len(w))
    assert torch.equal(nm_mask(w[order], f"{n}:{m}"), mask[order])
    if w.dim() > 2: assert torch.equal(nm_mask(w[..., 0].contiguous(), f"{n}:{m}"), mask[..., 0])


@given(weights("2:4", kernels=((),)), st.sampled_from(["1:2", "2:4", "1:4", "3:4"]))
@settings(max_examples=20)
def test_a_transposable_mask_is_n_of_m_both_ways_and_no_better_than_one_of_rows(drawn, pattern):
    w, (n, m) = drawn[0].repeat(4, 1), parse_pattern(pattern)
    mask = transposable_mask(w, pattern)
    for x in (mask, mask.T): assert all(sum(group) == n for group in groups_of(x, m))
    kept = lambda mask: (w.double().abs() * mask).sum().item()
    assert kept(mask) <= kept(nm_mask(w, pattern)) * (1 + 1e-12)


NEARLY = st.builds("{}:{}".format, st.integers(-1, 40), st.integers(-1, 40))


@given(st.text(alphabet="0123456789:- +.²٣ab", max_size=6) | NEARLY)
@example("2:4\n")
@example("")
@example("２:４")
def test_a_pattern_is_two_plain_numbers_the_first_no_larger(text):
    said = re.fullmatch(r"([0-9]+):([0-9]+)", text)
    fine = said is not None and 1 <= int(said[1]) <= int(said[2])
    if fine: assert parse_pattern(text) == (int(said[1]), int(said[2]))
    else:
        with pytest.raises(ValueError, match="pattern"): parse_pattern(text)


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_every_pattern_can_be_written_and_read(n, more):
    assert parse_pattern(f"{n}:{n + more}") == (n, n + more)


@given(st.lists(st.integers(1, 40), min_size=0, max_size=6), st.sampled_from(PATTERNS))
def test_a_weight_is_dense_for_a_reason(shape, pattern):
    m = int(pattern.split(":")[1])
    fits = len(shape) in (2, 3, 4, 5) and shape[1] % m == 0
    assert (why_dense(shape, pattern) is None) == fits


@given(st.integers(0, 63), st.sampled_from([math.nan, math.inf, -math.inf]), st.sampled_from(DTYPES))
@settings(max_examples=20)
def test_what_is_not_finite_is_refused_wherever_it_stands(place, value, dtype):
    layer = nn.Linear(16, 4).to(dtype)
    layer.weight.data.view(-1)[place] = value
    before = bits(layer.weight.data)
    with pytest.raises(ValueError, match="weight has non-finite values"): sparsify_(nn.Sequential(layer), "2:4", layers="paper")
    with pytest.raises(ValueError, match="non-finite|not 2:4"): pack(layer.weight)
    assert type(layer) is nn.Linear and bits(layer.weight.data) == before


# packed weights

@st.composite
def two_of_four(draw):
    "A weight in which each four have at most two that are not +0."
    shape = draw(st.integers(1, 3)), 4 * draw(st.integers(1, 5)), *draw(st.sampled_from([(), (3,), (1, 2)]))
    dtype, pair = draw(st.sampled_from(DTYPES)), st.lists(st.integers(0, 3), max_size=2, unique=True)
    fours = torch.zeros(math.prod(shape) // 4, 4, dtype=torch.float64)
    for four in fours:
        for place in draw(pair): four[place] = draw(st.one_of(TIES, ANY))
    rows = fours.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous().to(dtype)
    assume(rows.isfinite().all())
    return rows


def by_the_format(values, indices):
    "Rows of the dense weight, from the description of the format: in a byte two groups, the first one low."
    rows = []
    for row, codes in zip(values.flatten(0, -2).tolist(), indices.flatten(0, -2).tolist()):
        dense = [0.] * (2 * len(row))
        for g in range(len(row) // 2):
            code = codes[g // 2] >> 4 if g % 2 else codes[g // 2] & 15
            dense[4 * g + (code & 3)] = row[2 * g]
            dense[4 * g + (code >> 2)] = row[2 * g + 1]
        rows.append(dense)
    return rows


@given(two_of_four())
def test_packing_and_unpacking_is_exact_to_the_bit(w):
    values, indices = pack(w)
    assert values.dtype == w.dtype and values.shape[-1] * 2 == w.shape[1]
    back = unpack(values, indices)
    assert back.shape == w.shape and bits(back) == bits(w)
    assert by_the_format(values, indices) == w.movedim(1, -1).reshape(-1, w.shape[1]).tolist()


@given(two_of_four(), st.data())
def test_indices_that_name_no_two_places_in_order_are_refused(w, data):
    values, indices = pack(w)
    damaged, groups = indices.flatten(), w.shape[1] // 4
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    damaged = damaged.view(indices.shape)
    codes = [c for row in damaged.flatten(0, -2).tolist() for c in [h for b in row for h in (b & 15, b >> 4)][:groups]]
    if all(code & 3 < code >> 2 for code in codes):
        assert unpack(values, damaged).movedim(1, -1).reshape(-1, w.shape[1]).tolist() == by_the_format(values, damaged)
    else:
        with pytest.raises(ValueError, match="corrupt indices"): unpack(values, damaged)
    with pytest.raises(ValueError, match="do not belong together"): unpack(values[..., :-1], indices)
    with pytest.raises(ValueError, match="do not belong together"): unpack(values, torch.cat([indices, indices], -1))


@given(weights(kernels=((), (2,))))
def test_a_weight_is_packed_if_and_only_if_its_fours_have_two_or_fewer(drawn):
    w, n, m = drawn
    masked = nm_weight(w, f"{n}:{m}")
    fits = w.shape[1] % 4 == 0 and all(sum(v != 0 for v in four) <= 2 for four in groups_of(masked, 4))
    assert (why_not_24(masked) is None) == fits
    assert not (is_24_legal(f"{n}:{m}") and w.shape[1] % 4 == 0) or fits
    if fits: assert torch.equal(unpack(*pack(masked)), masked)
    else:
        with pytest.raises(ValueError, match="is not 2:4"): pack(masked)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    "A small packed model, and its bytes."
    torch.manual_seed(0)
    model = bake_(sparsify_(build_model("smoke", depth=0), "2:4"))
    path = tmp_path_factory.mktemp("packed")/"a.safetensors"
    save_packed(model, path)
    load_packed(path)
    return path, path.read_bytes()


@given(st.data())
def test_a_packed_file_with_a_changed_bit_is_refused(packed, data):
    path, good = packed
    place, damaged = data.draw(st.integers(0, len(good) - 1)), bytearray(good)
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=re.escape(str(path))): load_packed(path)


# what needs no training

def by_size(w, n, m):
    "The mask that keeps the n largest of each m of `w` (out, in), float64; no ties."
    ranks = w.abs().view(len(w), -1, m).argsort(-1, descending=True).argsort(-1)
    return (ranks < n).view(w.shape)


def obs(w, H, n, m, damping):
    "SparseGPT from its paper: the inverse of what is still to come is computed anew for each column."
    w, mask, H = w.clone(), torch.ones_like(w, dtype=torch.bool), H + damping * H.diagonal().mean() * torch.eye(len(H)).double()
    inverse = [torch.linalg.inv(H[j:, j:]) for j in range(len(H))]
    for j, left in enumerate(inverse):
        if j % m == 0:
            costs = torch.stack([w[:, k] / inverse[k][0, 0].sqrt() for k in range(j, j + m)], 1)
            mask[:, j:j + m] = by_size(costs, n, m)
        error = torch.where(mask[:, j], 0., w[:, j]) / left[0, 0]
        w[:, j:] -= error[:, None] * left[0]
    return w * mask, mask


def calibrated(net, x, method, pattern, **how):
    "The layers of a copy, pruned by what they see of x."
    return one_shot_(copy.deepcopy(net), pattern, method, layers="paper", calibrate=[(part,) for part in x.split(7)], **how)


@given(st.integers(0, 10**6), st.sampled_from(["2:4", "1:4", "3:4", "5:8"]), st.sampled_from([.01, .3]))
@settings(max_examples=15)
def test_wanda_and_sparsegpt_choose_what_their_papers_say(seed, pattern, damping):
    n, m = parse_pattern(pattern)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(16, 24, bias=False), nn.ReLU(), nn.Linear(24, 5))
    x = torch.randn(40, 16) @ torch.randn(16, 16)   # of different sizes, and correlated
    pruned = {method: calibrated(net, x, method, pattern, damping=damping) for method in ("wanda", "sparsegpt")}
    for i, rows in ((0, x), (2, net[:2](x).detach())):
        w, H = net[i].weight.detach().double(), (rows.T @ rows).double() / len(rows)
        new, mask = obs(w, H, n, m, damping)
        wanda, sparsegpt = (pruned[method][i] for method in ("wanda", "sparsegpt"))
        assert torch.equal(sparsity_of(wanda).mask, by_size(w * rows.double().square().sum(0).sqrt(), n, m))
        assert torch.equal(wanda.weight, net[i].weight * sparsity_of(wanda).mask)
        assert torch.equal(sparsity_of(sparsegpt).mask, mask)
        torch.testing.assert_close(sparsegpt.weight.double(), new, rtol=1e-3, atol=1e-4)


def test_sparsegpt_passes_its_errors_on_from_block_to_block():
    "128 columns are one block."
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(264, 3)), torch.randn(600, 264) @ torch.randn(264, 264)
    w, H = net[0].weight.detach().double(), (x.T @ x).double() / len(x)
    new, mask = obs(w, H, 2, 4, .01)
    layer = calibrated(net, x, "sparsegpt", "2:4")[0]
    assert torch.equal(sparsity_of(layer).mask, mask)
    torch.testing.assert_close(layer.weight.double(), new, rtol=1e-3, atol=1e-4)


@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([4, 8]), st.sampled_from([8, 16]))
def test_asp_prunes_by_size_where_the_tiles_of_sparse_tensor_cores_fit(outs, ins, out, in_):
    shape = outs * out, ins * in_
    layer = nn.Linear(shape[1], shape[0])
    assert asp_layer(layer) == (shape[0] % 8 == 0 and shape[1] % 16 == 0)
    pruned = asp_(nn.Sequential(copy.deepcopy(layer), nn.Linear(16, 8)))
    if asp_layer(layer): assert torch.equal(sparsity_of(pruned[0]).mask, by_size(layer.weight.detach(), 2, 4))
    else: assert sparsity_of(pruned[0]) is None
    assert sparsity_of(pruned[1]).pattern == "2:4"


# topologies

SHAPES = st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 12), st.integers(1, 12)) |
                         st.tuples(st.integers(1, 8), st.integers(1, 8), st.just(3), st.just(3)), min_size=1)


@given(SHAPES, st.floats(0, .99), st.sampled_from(["erk", "uniform"]))
def test_densities_add_up_and_differ_as_the_sides_of_the_layers(shapes, sparsity, topology):
    found = densities(shapes, sparsity, topology)
    size = {k: math.prod(s) for k, s in shapes.items()}
    assert all(0 < d <= 1 + 1e-9 for d in found.values())
    assert math.isclose(sum(found[k] * size[k] for k in shapes), (1 - sparsity) * sum(size.values()), rel_tol=1e-6)
    scales = [found[k] * size[k] / sum(shapes[k]) for k in shapes if found[k] < 1]   # density ∝ sum of sides over size
    if topology == "erk" and scales: assert max(scales) / min(scales) < 1 + 1e-6
    if topology == "uniform": assert set(found.values()) == {1 - sparsity}


@given(SHAPES, st.floats(0, .99), st.sampled_from(["erk", "uniform"]))
def test_counts_are_whole_add_up_and_leave_no_layer_empty(shapes, sparsity, topology):
    size = {k: math.prod(s) for k, s in shapes.items()}
    try: kept = counts(shapes, sparsity, topology)
    except ValueError as e:
        assert "is too small for a sparsity of" in str(e)
        assert any(d * size[k] < 1 for k, d in densities(shapes, sparsity, topology).items())
        return
    assert all(isinstance(n, int) and 1 <= n <= size[k] for k, n in kept.items())
    assert sum(kept.values()) == round((1 - sparsity) * sum(size.values()))
    exact = densities(shapes, sparsity, topology)
    assert all(abs(n - exact[k] * size[k]) <= 1 + 1e-6 for k, n in kept.items())


@given(st.integers(1, 6), st.integers(1, 4), st.sampled_from([(), (3, 3)]), st.sampled_from(["layer", "row", 4]),
       st.sampled_from([.25, .5, .75]), st.integers(0, 2**32))
def test_a_drawn_topology_has_its_counts_in_every_group(out, fours, kernel, group, sparsity, seed):
    w = {"w": torch.empty(out, 4 * fours, *kernel)}
    with patch("warnings.warn"): masks = draw_masks(w, sparsity, "uniform", group, seed)
    assert torch.equal(masks["w"], draw_masks(w, sparsity, "uniform", group, seed)["w"])
    kept = layer_counts({"w": tuple(w["w"].shape)}, sparsity, "uniform", group)["w"]
    per = [int(n) for n in grouped(masks["w"], group).sum(1)]
    assert len(set(per)) == 1 and sum(per) == kept
    if group == 4: assert per[0] == 4 * (1 - sparsity) and all(sum(g) == per[0] for g in groups_of(masks["w"], 4))
    if group == "layer": assert kept == round((1 - sparsity) * masks["w"].numel())


@given(weights("2:4"), st.sampled_from(["layer", "row", 4, 2]))
def test_a_weight_can_be_taken_apart_and_put_together(drawn, group):
    w = drawn[0]
    apart = grouped(w, group)
    assert torch.equal(ungrouped(apart, w, group), w)
    if isinstance(group, int): assert apart.tolist() == groups_of(w, group)
    if group == "row": assert apart.tolist() == [row.flatten().tolist() for row in w]


@given(st.data(), st.sampled_from(["layer", "row"]), st.integers(1, 3), st.integers(2, 6))
def test_moving_weights_drops_the_smallest_and_regrows_the_largest_scores(data, group, out, ins):
    values = lambda element: torch.tensor(data.draw(st.lists(element, min_size=out * ins, max_size=out * ins))).view(out, ins)
    mask, score = values(st.booleans()), values(st.integers(0, 5)).float()
    w = values(st.integers(-4, 4).filter(bool)).float() * mask
    k = data.draw(st.integers(0, int(mask.sum())))
    new, changed = prune_and_regrow(w, mask, score, k, group)
    there = [(abs(w[i, j].item()), i, j) for i in range(out) for j in range(ins) if mask[i, j]]
    dropped = {(i, j) for _, i, j in sorted(there)[:k]}
    stay, wanted = {(i, j) for _, i, j in there} - dropped, set()
    for rows in [[i] for i in range(out)] if group == "row" else [range(out)]:
        open_ = sorted((-score[i, j].item(), i, j) for i in rows for j in range(ins) if (i, j) not in stay)
        wanted |= {(i, j) for _, i, j in open_[:sum(i in rows for i, _ in dropped)]}
    assert {tuple(p) for p in new.nonzero().tolist()} == stay | wanted
    assert {tuple(p) for p in changed.nonzero().tolist()} == dropped | wanted


@given(st.integers(1, 20), st.floats(.01, 1), st.integers(1, 200), st.sampled_from(["random", "gradient"]))
@example(10, 1., 40, "random")
def test_a_topology_moves_every_so_many_steps_until_its_time_and_never_at_the_end(every, until, steps, regrow):
    moves = Moves(regrow, .4, every=every, until=until)
    due = [step for step in range(steps + 2 * every) if moves.due(step, steps)]
    assert due == [k * every for k in range(1, steps + 1) if k * every <= until * steps and k * every < steps]
    assert moves.times(steps) == len(due) and not any(Moves(every=every).due(step, steps) for step in due)
    shares = [moves.share(step, steps) for step in [0, *due]]
    assert shares[0] == .4 and shares == sorted(shares, reverse=True) and min(shares) >= 0
    assert math.isclose(moves.share(until * steps / 2, steps), .2) and abs(moves.share(until * steps, steps)) < 1e-12
    assert replace(moves, anneal=False).share(steps // 2, steps) == .4


# runs and records

SCALES.named("demo")   # the papers are loaded
UNTOLD = [name for name, config in PRESETS.items() if config.get("num_classes", 0) <= 0 and not config.get("clip_dim")]
FITTING = [s.name for s in SAMPLERS.values() if s.serves is None or s.serves(PROCESSES.named("vp"))]   # that of the plain run
NAMES = {name: st.sampled_from(sorted(registry)) for name, registry in
         dict(scale=SCALES, method=METHODS, data=DATASETS, model=UNTOLD, extractor=EXTRACTORS, sampler=FITTING).items()}
SHARE, POSITIVE = st.floats(0, 1), st.floats(1e-9, 1e9)
WORD = st.text("az09_", max_size=5)
FINE = NAMES | dict(
    backbone=st.text("az09_", min_size=1, max_size=5), seed=st.integers(0, 2**32 - 1), start=WORD,
    teacher=WORD,
    pattern=st.sampled_from(["", *PATTERNS]), estimator=st.sampled_from(["", "ste", "improved", "fixed"]),
    layers=st.sampled_from(["paper", "code", "asp", "inner"]),
    one_shot=st.sampled_from(["", *sorted(set(PREPARE) - {"published"})]),
    schedule=st.sampled_from(["", *sorted(SCHEDULES)]), released=st.booleans(), lambda_w=st.floats(0, 1e3),
    decay=st.sampled_from(["gradient", "update", "backward"]), loss_scale=POSITIVE, lambda_teacher=st.floats(0, 1e3),
    lambda_noise=st.floats(0, 1e3), train_on=st.sampled_from(["data", "teacher", "both"]), steps=st.integers(0, 10**7),
    batch_size=st.integers(1, 10**6), lr=POSITIVE, warmup=st.integers(0, 10**6), weight_decay=st.floats(0, 10),
    cooldown=SHARE, betas=st.lists(st.floats(0, .999), min_size=2, max_size=2), ema=SHARE, points=st.integers(0, 100),
    n_samples=st.integers(2, 10**6), sampler_steps=st.integers(1, 2000),
    options=st.just({}) | st.fixed_dictionaries(dict(sparsity=st.floats(0, .99)), optional=dict(
        p=st.floats(.01, .99), updates=st.integers(1, 99), regrow=st.sampled_from(["", "gradient", "random"]),
        anneal=st.booleans())))
MEASURES = {"scale", "points", "extractor", "n_samples", "sampler", "sampler_steps"}   # all that the weights do not depend on
PLAIN = make_run("demo", "ours")


@pytest.mark.parametrize("name", [f.name for f in fields(Run)])
@given(data=st.data())
@settings(max_examples=8)
def test_each_field_changes_the_id_and_if_it_matters_to_them_that_of_the_weights(name, data):
    value = data.draw(FINE[name])
    other = replace(PLAIN, **{name: value})
    same = getattr(PLAIN, name) == value
    assert (other.id == PLAIN.id) == same and (other == PLAIN) == same
    assert (other.weights_id == PLAIN.weights_id) == (same or name in MEASURES)
    assert replace(other, **{name: getattr(PLAIN, name)}).id == PLAIN.id


NUMBERS = {name for name, strategy in FINE.items() if type(getattr(PLAIN, name)) in (int, float)}
WRONG = st.sampled_from([math.nan, math.inf, -math.inf, -1, -.5, "1", None, True, [], 1 + 1j])


@given(st.sampled_from(sorted(NUMBERS)), WRONG)
def test_what_is_no_number_in_its_range_is_no_field_of_a_run(name, value):
    with pytest.raises(ValueError, match=f"Run: {name} must be"): replace(PLAIN, **{name: value})


@given(st.sampled_from(sorted(set(FINE) - NUMBERS - {"options", "betas"})), st.sampled_from([None, 3, "nosuch:thing", ["demo"]]))
def test_what_is_no_known_name_is_no_field_of_a_run(name, value):
    if name in ("backbone", "start", "teacher") and isinstance(value, str): return   # any text
    with pytest.raises(ValueError): replace(PLAIN, **{name: value})


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    "A root that has nothing yet."
    folder = tmp_path_factory.mktemp("root")
    for name in ("Snakefile", "settings.ini"): (folder/name).touch()
    with patch.dict(os.environ, SPARSEDM_ROOT=str(folder)): yield folder


NUMBER = st.floats(0, 1e6) | st.integers(0, 2**40)


@st.composite
def results(draw):
    "What a run found."
    parts = {part: {name: draw(NUMBER) for name in names} for part, names in REQUIRED.items()}
    parts["metrics"] |= {"precision": draw(SHARE), "recall": draw(SHARE), "n_samples": PLAIN.n_samples,
                         "extractor": PLAIN.extractor, "kid": draw(st.floats(-1, 1))}
    series = dict(loss=draw(st.lists(NUMBER, max_size=3)), loss_by_t=draw(st.lists(NUMBER, max_size=3)),
                  flips=[[1, draw(SHARE)]], curve=[dict(step=3, fid=draw(NUMBER))])
    params = draw(st.integers(1, 2**40))
    return dict(label=draw(st.text(max_size=5)), params=params, kept=draw(st.integers(0, params)), **parts, **series)


@given(results())
@settings(max_examples=20)
def test_a_record_is_read_as_it_was_written(elsewhere, found):
    write_record(PLAIN, **found)
    record = read_record(PLAIN)
    assert {k: record[k] for k in found} == json.loads(json.dumps(found)) and record["id"] == PLAIN.id
    assert Run(**record["run"]) == PLAIN


def leaves(value, path=()):
    "Paths of the values that hold no others."
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inside is None: yield path
    else:
        for k, v in inside: yield from leaves(v, (*path, k))


@given(results(), st.data())
def test_a_record_with_another_value_anywhere_is_refused(elsewhere, found, data):
    path = write_record(PLAIN, **found)
    record = json.loads(path.read_text())
    *outer, last = data.draw(st.sampled_from(sorted(leaves(record), key=str)))
    inside = record
    for k in outer: inside = inside[k]
    old = inside[last]
    inside[last] = data.draw(st.sampled_from([old + "x" if isinstance(old, str) else "x", 7.25, None, not old]))
    assume(inside[last] != old)
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=re.escape(str(path))): read_record(PLAIN)


@given(results(), st.data())
@settings(max_examples=40)
def test_a_record_with_a_changed_byte_is_refused_or_the_same(elsewhere, found, data):
    path = write_record(PLAIN, **found)
    good, raw = read_record(PLAIN), bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    try: assert read_record(PLAIN) == good
    except ValueError as e: assert str(path) in str(e)


@given(results(), st.sampled_from([(part, name) for part in REQUIRED for name in REQUIRED[part]] + [("kept",), ("params",)]),
       st.sampled_from(["missing", "3", None, math.nan, math.inf, True, -1, [1]]))
def test_a_number_that_is_missing_or_impossible_is_named(found, where, wrong):
    inside = found[where[0]] if len(where) == 2 else found
    if wrong == "missing": inside.pop(where[-1])
    else: inside[where[-1]] = wrong
    if where[-1] == "kid" and wrong == -1: return   # which may be below zero
    with pytest.raises(ValueError, match=".".join(where)): check_record(found)


@given(results(), st.sampled_from(SERIES), st.sampled_from([3., "x", None, {}, [["x"]], [None], [math.nan], ["1"]]))
@settings(max_examples=30)
def test_a_series_that_is_none_is_named(found, name, wrong):
    with pytest.raises(ValueError, match=name): check_record(found | {name: wrong})


@given(results(), st.floats(1.001, 1e6), st.integers(1, 10**6))
@settings(max_examples=10)
def test_a_record_that_contradicts_itself_or_its_run_is_refused(found, above, more):
    check_record(found)
    metrics, run = found["metrics"], dict(n_samples=PLAIN.n_samples, extractor=PLAIN.extractor)
    check_record(found | dict(run=run))
    for changed, says in [
        (dict(metrics=metrics | dict(recall=above)), "metrics.recall"),
        (dict(metrics=metrics | dict(precision=above)), "metrics.precision"),
        (dict(kept=found["params"] + more), "more than params"),
        (dict(run=run | dict(n_samples=PLAIN.n_samples + more)), "metrics.n_samples is"),
        (dict(run=run | dict(extractor="another")), "metrics.extractor is"),
    ]:
        with pytest.raises(ValueError, match=says): check_record(found | changed)


def test_a_record_that_was_sealed_anew_is_checked_when_it_is_read(elsewhere):
    "With each field of its run changed, or with results that cannot be."
    found = {part: dict.fromkeys(names, 1.) for part, names in REQUIRED.items()}
    found["metrics"] |= dict(extractor=PLAIN.extractor, n_samples=PLAIN.n_samples)
    path = write_record(PLAIN, params=2, kept=1, **found, **{k: [] for k in SERIES})
    good = json.loads(path.read_text())
    good.pop("checksum")
    for name, value in good["run"].items():
        wrong = good | dict(run=good["run"] | {name: "another" if isinstance(value, str) else [value]})
        reseal(path, wrong)
        with pytest.raises(ValueError, match=f"is not the record of {PLAIN.id}"): read_record(PLAIN)
    for part, value in dict(params=0, metrics={}, loss=[None], kept=-1, seconds=good["macs"]).items():   # well sealed, and wrong
        reseal(path, good | {part: value})
        with pytest.raises(ValueError, match=f"{re.escape(str(path))}: (missing|not|below|kept)"): read_record(PLAIN)
    reseal(path, good)
    assert read_record(PLAIN)["id"] == PLAIN.id and record_path(PLAIN) == path


def reseal(path, record):
    path.unlink()
    write_sealed(path, record)
