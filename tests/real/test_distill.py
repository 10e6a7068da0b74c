"""Draft heads: trained as they decode, from the target's own samples, the same weights for the same plan."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from real import distill, optimized_speculative
from real.distill import DistillPlan, Lessons, OverlapLoss, losses, make_plan, most_used, read_curve, train
from real.distill_samples import Samples, Turns, read_samples, read_starters, sample
from real.distilled_draft import HeadSource
from real.distilled_head import DistilledHead, HeadShape, load_head, save_head
from real.draft_models import ModelDraft
from real.llama_decoder import LlamaDecoder
from real.loading import Target
from real.requests import Batch, prefill
from real.sampling import SamplingSettings
from tests.real.conftest import CPU, WordTokenizer, tiny_model
from tests.test_cli import call

PLAN = DistillPlan(seed=0, shards=1, steps=6, rows=8, length=64, vocabulary=30, batch_rows=2, unroll=3, warmup=2)
STARTERS = ((7, 9, 11), (8,), (20, 21))


class BeginningWords(WordTokenizer):
    """`WordTokenizer` with a token to begin with."""

    bos_token_id: int | None = 0

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return super().__call__(text)


@pytest.fixture(scope="module")
def target() -> Target:
    decoder = LlamaDecoder.from_transformers(tiny_model().float())
    return Target("tiny", decoder, BeginningWords(), frozenset({1}))


@pytest.fixture(autouse=True)
def starters(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Openings in the tiny model's words."""
    path = tmp_path_factory.mktemp("starters") / "starters.jsonl"
    texts = [" ".join(f"t{token}" for token in start) for start in STARTERS]
    path.write_text("\n".join(json.dumps({"start": text}) for text in texts))
    monkeypatch.setattr(distill, "STARTERS", path)
    return path


def quiet(stage: str, done: int, total: int, detail: str) -> None:
    pass


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in load_head(folder)[0].named_parameters()}


def assert_same_weights(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert (a / "curve.csv").read_text() == (b / "curve.csv").read_text()


@pytest.fixture
def trained(target: Target, tmp_path: Path) -> Path:
    return train(target, PLAN, tmp_path / "trained", quiet, validate_every=2)


# ---- what is computed in training is what is computed in decoding


def double_target() -> LlamaDecoder:
    return LlamaDecoder.from_transformers(tiny_model())


def features_of(target: LlamaDecoder, tokens: Tensor, layers: tuple[int, ...]) -> Tensor:
    """[rows, n, layers, width] of tokens [rows, n]."""
    cache = target.new_cache(tokens.shape[1], len(tokens), layers)
    target.forward(tokens, cache)
    assert cache.features is not None
    return cache.features


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_training_unrolls_what_decoding_computes(steps: int) -> None:
    """For every context from 2 tokens on: the outputs after it and after the tokens that followed, drafted in turn."""
    target = double_target()
    vocabulary = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    local = vocabulary.argsort()
    head = DistilledHead(HeadShape.of(target), vocabulary, seed=2).double()
    tokens = torch.randint(64, (1, 14), generator=torch.Generator().manual_seed(3))
    places = tokens.shape[1] - 1
    unrolled = torch.stack(
        head.unrolled(
            features_of(target, tokens, head.shape.feature_layers)[:, :-1], target.embedding[tokens[:, 1:]],
            target.cosine[:places], target.sine[:places], steps,
        ),
        dim=1,
    )[0]  # fmt: skip
    source = HeadSource(head, target)
    cache = prefill(target, [tokens[0]], 20, source.feature_layers)
    for known in range(2, tokens.shape[1] - steps + 2):
        batch = Batch([tokens[0, :known]], 5, 20, frozenset(), [0], CPU)
        source.start(batch, cache)
        logits = [source.catch_up(batch)]
        for step in range(1, steps):
            logits.append(source.extend(local[tokens[:, known + step - 1 : known + step]])[:, 0])
        expected = torch.stack([unrolled[step, known - 2 + step] for step in range(steps)])
        torch.testing.assert_close(source.outputs[0], expected, rtol=1e-5, atol=1e-6)
        scores = F.rms_norm(expected, expected.shape[-1:], head.norm, head.shape.epsilon)
        scores = scores @ target.output_head[vocabulary].T
        torch.testing.assert_close(torch.cat(logits).double(), scores, rtol=1e-4, atol=1e-5)
        for step in range(1, steps):  # a step that read the target's features instead would be seen
            assert (source.outputs[0, step] - unrolled[0, known - 2 + step]).norm() > 0.01 * expected[step].norm()


def test_a_head_that_catches_up_in_pieces_computes_the_same() -> None:
    """Rows of different lengths, and tokens that arrive one to three at a time, after others were drafted."""
    target = double_target()
    head = DistilledHead(HeadShape.of(target), torch.arange(64), seed=2).double()
    source, fresh = HeadSource(head, target), HeadSource(head, target)
    texts = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(3))
    cache = prefill(target, list(texts), 24, source.feature_layers)
    batch = Batch([texts[0, :9], texts[1, :3]], 12, 24, frozenset(), [0, 0], CPU)
    source.start(batch, cache)
    for new in [(0, 0), (1, 3), (3, 1), (2, 2)]:
        for row, count in enumerate(new):
            begin = len(batch.tokens[row])
            if count:
                batch.append(row, texts[row, begin : begin + count].tolist())
        logits = [source.catch_up(batch), source.extend(torch.tensor([[5], [6]]))[:, 0]]
        for row in range(2):
            alone = Batch([torch.tensor(batch.tokens[row])], 12, 24, frozenset(), [0], CPU)
            fresh.start(alone, prefill(target, [texts[row]], 24, source.feature_layers))
            for ours, theirs in zip(
                logits, [fresh.catch_up(alone), fresh.extend(torch.tensor([[5 + row]]))], strict=True
            ):
                torch.testing.assert_close(ours[row], theirs.view(-1), rtol=1e-4, atol=1e-5)


def test_a_head_made_for_another_target_is_refused() -> None:
    target = double_target()
    head = DistilledHead(HeadShape.of(target), torch.arange(64))
    with pytest.raises(ValueError, match=r"trained for a target with \(width, heads, KV heads, head size, layers\)"):
        HeadSource(head, target.first_layers(3))
    with pytest.raises(ValueError, match="train one with `specdec distill`"):
        HeadSource(DistilledHead(HeadShape.of(target), torch.tensor([3, 64])), target)


# ---- the loss


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_the_loss_and_its_gradient_are_those_of_the_plain_formula(weight: float) -> None:
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(300, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    rows = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    p = torch.randn(300, 25, generator=generator, dtype=torch.float64).mul(2).softmax(-1)[:, :20]  # a cut vocabulary
    twin = hidden.detach().clone().requires_grad_()
    loss, parts = OverlapLoss.apply(hidden, rows, p, weight)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    log_q = (twin @ rows.T).log_softmax(-1)
    cross_entropy = -(p * log_q).sum(-1).mean()
    overlap = torch.minimum(log_q.exp(), p).sum(-1).mean()
    plain = (1 - weight) * cross_entropy + 4 * weight * (1 - overlap)
    agreement = (p.argmax(-1) == log_q.argmax(-1)).double().mean()
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(parts, torch.stack([cross_entropy, overlap, agreement]), rtol=1e-6, atol=1e-6)
    (3 * loss).backward()
    (3 * plain).backward()
    torch.testing.assert_close(hidden.grad, twin.grad, rtol=1e-4, atol=1e-7)


# ---- samples


def draw_samples(target: LlamaDecoder, turns: Turns, rows: int = 8, length: int = 96, seed: int = 0) -> Samples:
    return sample(
        target, turns, list(STARTERS), frozenset({1}), feature_layers=HeadShape.of(target).feature_layers, rows=rows,
        length=length, seed=seed,
    )  # fmt: skip


DIALOGUE = Turns(opening=(2, 3), answer=(4, 5), next_turn=(6,))


@pytest.mark.parametrize("turns", [Turns((0,), (), (0,)), DIALOGUE], ids=["texts", "dialogues"])
def test_samples_are_what_a_fresh_forward_computes(target: Target, turns: Turns) -> None:
    decoder = distill.llama_of(target)
    samples = draw_samples(decoder, turns)
    cache = decoder.new_cache(96, 8, HeadShape.of(decoder).feature_layers)
    logits = decoder.forward(samples.token_ids.long(), cache)
    assert cache.features is not None
    torch.testing.assert_close(samples.features.float(), cache.features, rtol=2e-3, atol=2e-3)
    assert cache.features.pow(2).mean(-1).sub(1).abs().max() < 1e-3
    start = len(turns.opening) - 1
    assert samples.log_normaliser[:, :start].isnan().all()
    assert samples.log_normaliser[:, -1].isnan().all()
    torch.testing.assert_close(
        samples.log_normaliser[:, start:-1], logits.logsumexp(-1)[:, start:-1], rtol=1e-4, atol=1e-4
    )


def test_samples_are_dialogues(target: Target) -> None:
    """They open as they must, the end of an answer brings the next question, and a question is not endless."""
    tokens = draw_samples(distill.llama_of(target), DIALOGUE, rows=16, length=128).token_ids.tolist()
    ended = 0
    for row in tokens:
        assert row[:2] == [2, 3]
        stops = [place for place, token in enumerate(row) if token == 1]
        assert all(row[stop + 1 : stop + 2] in ([6], []) for stop in stops)
        ended += len(stops)
        for begin in [2, *(stop + 2 for stop in stops)]:
            question = tuple(row[begin:])
            assert any(question[: len(start)] == start[: len(question)] for start in STARTERS)
        assert any(row[place : place + 2] == [4, 5] for place in range(2, 2 + 3 + 96))
    assert ended > 5


def test_the_same_seed_samples_the_same_texts(target: Target) -> None:
    one, two, other = (draw_samples(distill.llama_of(target), DIALOGUE, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(one.token_ids, two.token_ids)
    assert torch.equal(one.features, two.features)
    assert not torch.equal(one.token_ids, other.token_ids)


def test_lessons_are_the_target_s_law_of_the_token_after_next(target: Target) -> None:
    decoder = distill.llama_of(target)
    samples = draw_samples(decoder, DIALOGUE)
    head = DistilledHead(HeadShape.of(decoder), torch.tensor([9, 40, 3, 17, 5]))
    rows = torch.tensor([6, 1])
    features, embedded, p, known = Lessons(samples, decoder).batch(rows, head)
    tokens = samples.token_ids[rows].long()
    law = decoder.forward(tokens, decoder.new_cache(96, 2)).softmax(-1)
    assert known.all()
    torch.testing.assert_close(p, law[:, 1:-1][..., head.vocabulary], rtol=0.02, atol=2e-3)
    assert torch.equal(features, samples.features[rows, :-2].float())
    assert torch.equal(embedded, decoder.embedding[tokens[:, 1:-1]])
    assert len(losses(head, decoder, (features, embedded, p, known), 3)) == 3


def test_the_vocabulary_holds_the_most_used_tokens_first() -> None:
    ids = torch.tensor([[5, 5, 5, 2, 2], [7, 7, 0, 2, 9]])
    assert most_used(ids, 4, 12).tolist() == [2, 5, 7, 0]
    assert most_used(ids, 99, 12).tolist()[:5] == [2, 5, 7, 0, 9]


class TestTurns:
    def test_a_tokenizer_without_a_template_has_texts_only(self) -> None:
        assert Turns.of(BeginningWords(), frozenset({1})) == Turns((0,), (), (0,))

    def test_texts_begin_with_something_where_there_is_no_beginning_token(self) -> None:
        """A line break encodes to nothing here, so the end token has to do."""
        tokenizer = BeginningWords()
        tokenizer.bos_token_id = None
        assert Turns.of(tokenizer, frozenset({1})) == Turns((1,), (), (1,))

    def test_a_template_is_read_for_what_stands_between_turns(self) -> None:
        class Chat(BeginningWords):
            chat_template = "there is one"  # type: ignore[assignment]  # a tokenizer has a template or none

            def apply_chat_template(
                self, messages: list[dict[str, str]], add_generation_prompt: bool, tokenize: bool
            ) -> str:
                marks = {"user": "t30 {} t31 ", "assistant": "t32 {} t1 t33 "}
                return "t2 " + "".join(marks[one["role"]].format(one["content"]) for one in messages) + "t32 "

        assert Turns.of(Chat(), frozenset({1})) == Turns((2, 30), (31, 32), (33, 30))

    def test_openings_are_read(self, starters: Path, tmp_path: Path) -> None:
        assert tuple(read_starters(starters, BeginningWords())) == STARTERS
        for text, says in [
            ("", "holds no openings"),
            ('{"start": "t2"}\n{"begin": 3}', "line 2 is not"),
            ("x", "line 1"),
        ]:
            (tmp_path / "bad.jsonl").write_text(text)
            with pytest.raises(ValueError, match=says):
                read_starters(tmp_path / "bad.jsonl", BeginningWords())
        with pytest.raises(ValueError, match="cannot read the openings"):
            read_starters(tmp_path / "none.jsonl", BeginningWords())


# ---- runs


def test_training_teaches_the_head_the_target(target: Target, tmp_path: Path) -> None:
    """On text that it was not trained on, and in the loop; everything is seeded."""
    plan = replace(PLAN, shards=2, steps=120, rows=64, batch_rows=16, vocabulary=64, warmup=10, peak_rate=2e-2)
    folder = train(target, plan, tmp_path / "run", quiet, validate_every=60)
    curve = read_curve(folder)
    decoder = distill.llama_of(target)
    untrained = DistilledHead(HeadShape.of(decoder), torch.arange(64), seed=plan.seed)
    held_out = distill.load_lessons([folder / "samples" / "0002.safetensors"], decoder)
    before = distill.validate(untrained, decoder, held_out, plan)
    assert [point["step"] for point in curve] == [60, 120]
    assert curve[-1]["positions"] == 120 * 16 * 64
    for step in range(1, plan.unroll + 1):
        assert curve[-1][f"alpha_{step}"] > before[f"alpha_{step}"] + 0.06
        assert curve[-1][f"agreement_{step}"] > 4 * before[f"agreement_{step}"]
    head, provenance = load_head(folder)
    ours, theirs = (losses(one, decoder, held_out.batch(torch.arange(64), one), 3) for one in (head, untrained))
    for (_, trained), (_, fresh) in zip(ours, theirs, strict=True):
        assert trained[0] < fresh[0]  # cross-entropy
    assert provenance["validation"] == curve[-1]

    wide = double_target()
    settings = SamplingSettings(temperature=1.0)
    shares = []
    for one in (untrained, head):
        draft = ModelDraft(HeadSource(one.double(), wide), settings, "head")
        outputs = optimized_speculative.generate_batch(
            wide, draft, [torch.tensor([0, *start]) for start in STARTERS] * 16, gamma=2, max_new_tokens=150,
            settings=settings,
        )  # fmt: skip
        chances = [chance for output in outputs for one in output.rounds for chance in one.accept_probability or ()]
        shares.append(sum(chances) / len(chances))
    assert shares[1] > shares[0] + 0.03  # a standard error is 0.006


def test_the_same_plan_gives_the_same_weights(target: Target, trained: Path, tmp_path: Path) -> None:
    again = train(target, PLAN, tmp_path / "again", quiet, validate_every=2)
    assert_same_weights(trained, again)
    other = train(target, replace(PLAN, seed=1), tmp_path / "other", quiet, validate_every=2)
    assert not torch.equal(weights(other)["mix"], weights(trained)["mix"])


def interrupt(at_stage: str, at: int) -> Callable[[str, int, int, str], None]:
    def progress(stage: str, done: int, total: int, detail: str) -> None:
        if (stage, done) == (at_stage, at):
            raise KeyboardInterrupt

    return progress


def ticks(long_after: int) -> Iterator[float]:
    """A clock: one second a look, but for ten minutes before look number `long_after`."""
    now = 0.0
    for look in range(10**6):
        now += 600 if look == long_after else 1
        yield now


@pytest.mark.parametrize(("checkpoint", "stop"), [(3, 5), (4, 4), (99, 5)])
def test_an_interrupted_run_goes_on_to_the_same_weights(
    target: Target, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: int, stop: int
) -> None:
    """A checkpoint two steps before the interruption, at it, or none at all."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        clock = ticks(checkpoint)
        patch.setattr(distill, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        with pytest.raises(KeyboardInterrupt):
            train(target, PLAN, folder, interrupt("train", stop), validate_every=2)
    assert (folder / "checkpoint.pt").exists() == (checkpoint < 99)
    assert not (folder / "head.safetensors").exists()
    steps: list[int] = []
    train(
        target, PLAN, folder, lambda stage, done, *_: steps.append(done) if stage == "train" else None,
        validate_every=2,
    )  # fmt: skip
    assert steps == [*range(1 + (checkpoint if checkpoint < 99 else 0), PLAN.steps + 1)]
    assert_same_weights(folder, trained)


def test_an_interrupted_sampling_keeps_its_finished_shards(target: Target, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    positions = PLAN.rows * PLAN.length
    with pytest.raises(KeyboardInterrupt):
        train(target, PLAN, folder, interrupt("sample", positions + 10 * PLAN.rows), validate_every=2)
    assert [path.name for path in (folder / "samples").iterdir()] == ["0000.safetensors"]
    sampled: list[int] = []
    train(
        target, PLAN, folder, lambda stage, done, *_: sampled.append(done) if stage == "sample" else None,
        validate_every=2,
    )  # fmt: skip
    assert sampled[0] == positions + PLAN.rows
    assert sampled[-1] == 2 * positions
    assert_same_weights(folder, trained)


def test_a_finished_run_stays_as_it_is(target: Target, trained: Path) -> None:
    before = weights(trained)
    stages: list[str] = []
    train(target, PLAN, trained, lambda stage, *_: stages.append(stage), validate_every=2)
    assert stages == []
    assert all(torch.equal(value, before[name]) for name, value in weights(trained).items())


def test_another_plan_in_the_same_folder_is_refused(target: Target, trained: Path) -> None:
    for plan, says in [(replace(PLAN, steps=7), r"'steps': \(6, 7\)"), (replace(PLAN, seed=3), r"'seed': \(0, 3\)")]:
        with pytest.raises(ValueError, match=f"another plan .*{says}.*name another folder with --out"):
            train(target, plan, trained, quiet)
    with pytest.raises(ValueError, match=r"'target': \('tiny', 'other'\)"):
        train(replace(target, name="other"), PLAN, trained, quiet)
    assert make_plan(target, trained, minutes=5, shards=None, steps=None, seed=0) == PLAN


def test_only_a_llama_shaped_target_is_distilled(target: Target, model: LlamaForCausalLM, tmp_path: Path) -> None:
    from real.decoder import TransformersDecoder

    with pytest.raises(ValueError, match="target 'tiny' is not Llama-shaped"):
        train(replace(target, decoder=TransformersDecoder(model)), PLAN, tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"unroll": 0}, "unroll must be >= 1, got 0"),
        ({"length": 63}, "length must be >= 64 tokens, got 63"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(changes: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(PLAN, **changes)


# ---- files


def test_a_head_survives_its_file(tmp_path: Path) -> None:
    target = double_target()
    head = DistilledHead(HeadShape.of(target), torch.tensor([9, 3, 40]), seed=5)
    save_head(head, tmp_path, {"target": "tiny", "plan": {"steps": 6}})
    loaded, provenance = load_head(tmp_path)
    assert loaded.shape == head.shape
    assert loaded.vocabulary.tolist() == [9, 3, 40]
    assert provenance == {"target": "tiny", "plan": {"steps": 6}}
    for name, value in head.named_parameters():
        assert torch.equal(dict(loaded.named_parameters())[name], value.half().float())
    save_head(loaded, tmp_path / "again", provenance)
    again, _ = load_head(tmp_path / "again")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_a_file_that_is_no_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a readable draft head .*`specdec distill` makes one"):
        load_head(tmp_path)
    (tmp_path / "head.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is not a readable draft head"):
        load_head(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match="holds no draft head"):
        load_head(tmp_path)


def test_a_damaged_shard_is_named(trained: Path) -> None:
    path = trained / "samples" / "0000.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"0000.safetensors is not a readable shard .* delete it and run again"):
        list(read_samples([path]))


# ---- the command line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "give either --minutes, or both --shards and --steps"),
        (("--steps", "5"), "give either --minutes, or both --shards and --steps"),
        (("--minutes", "5", "--steps", "5"), "give either --minutes, or both --shards and --steps"),
        (("--minutes", "0"), "minutes must be > 0, got 0"),
        (("--shards", "0", "--steps", "5"), "shards must be >= 1, got 0"),
    ],
)
def test_bad_use_of_distill_is_one_line_and_exit_code_two(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    model_folder: Path,
    words: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "distill", "--target", str(model_folder), "--out", "head", *words) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_distill_makes_a_head_that_measure_takes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    model_folder: Path,
) -> None:
    monkeypatch.setattr(distill, "DistillPlan", small_plan)
    (tmp_path / "starters.jsonl").write_text('{"start": "w3 w4"}\n')
    monkeypatch.setattr(distill, "STARTERS", tmp_path / "starters.jsonl")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "w3 w4 w5"}\n{"prompt": "w5"}\n')
    head = str(tmp_path / "head")
    words = ("distill", "--target", str(model_folder), "--out", head, "--shards", "1", "--steps", "3", "--json")
    assert call(monkeypatch, *words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["step"] == 3
    assert 0 < result["alpha_1"] < 1
    measure = ("measure", "--target", str(model_folder), "--draft", head, "--prompts", str(tmp_path / "prompts.jsonl"))
    limits = ("--gamma", "2", "--temperature", "1", "--max-new-tokens", "9", "--out", str(tmp_path / "m"), "--json")
    assert call(monkeypatch, *measure, *limits) == 0
    assert 0 < json.loads(capsys.readouterr().out)["alpha"] <= 1


def small_plan(**fields: int) -> DistillPlan:
    """A plan of few and short rows, whatever else is asked for."""
    return DistillPlan(**{"rows": 4, "length": 64, "vocabulary": 30, "batch_rows": 2, "warmup": 1} | fields)  # type: ignore[arg-type]  # all ints
