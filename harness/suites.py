"""The presets: what `--preset smoke`, `quick`, `paper` and others run, as data. The same protocol for every mixer."""

from collections.abc import Iterator
from dataclasses import replace

from harness.config import ModelConfig, RunConfig, TimingConfig, TrainingConfig
from harness.hookspecs import hookimpl
from harness.spec import SuiteSpec
from harness.tasks.options import MQAROptions, PileOptions


def _mqar(N: int, D: int, vocab_size: int, examples: int, held_out: int) -> MQAROptions:
    cell = (N, D)
    return MQAROptions(
        vocab_size=vocab_size,
        train_cells=((*cell, examples),),
        validation_cells=((*cell, held_out),),
        test_cells=((*cell, held_out),),
    )


def _smoke() -> SuiteSpec:
    return SuiteSpec(
        name="smoke",
        summary="does everything work: twenty-five to forty seconds a mixer on two CPU cores, scores mean nothing",
        runs=(
            RunConfig(
                task="mqar",
                options=_mqar(32, 2, 64, 6_400, 500),
                model=ModelConfig(d_model=32, layers="short_conv,MIXER"),
                training=TrainingConfig(steps=100, lrs=(1e-2,), seeds=(0,), eval_every=50),
                timing=TimingConfig(batch_size=16, T=32, samples=10, decode_tokens=16, processes=1),
            ),
            RunConfig(
                task="pile",
                options=PileOptions(T=128, eval_tokens=16_384),
                model=ModelConfig(d_model=64, layers="short_conv,MIXER", channel_mixer="swiglu"),
                training=TrainingConfig(
                    steps=40, batch_size=8, lrs=(3e-3,), seeds=(0,), betas=(0.9, 0.95), eval_every=40, clip=1.0
                ),
                timing=TimingConfig(batch_size=8, T=128, samples=10, decode_tokens=16, processes=1),
            ),
        ),
    )


def _quick() -> SuiteSpec:
    return SuiteSpec(
        name="quick",
        summary="the finding twice at small scale: two to four minutes a mixer on two CPU cores",
        default_on=("cpu",),
        runs=(
            RunConfig(
                task="mqar",
                options=_mqar(64, 8, 512, 32_000, 1_000),
                model=ModelConfig(d_model=64, layers="short_conv,MIXER"),
                training=TrainingConfig(steps=500, lrs=(1e-3, 3e-3, 1e-2), seeds=(0, 1), eval_every=100),
                timing=TimingConfig(batch_size=64, T=64),
            ),
            RunConfig(
                task="pile",
                options=PileOptions(T=256, eval_tokens=131_072),
                # 0.06 is about 0.7 / sqrt(d_model): from 0.02 attention finds recall only after more tokens
                model=ModelConfig(d_model=128, layers="short_conv,MIXER", init_std=0.06),
                training=TrainingConfig(
                    steps=1_250,
                    batch_size=8,
                    lrs=(8e-3,),
                    seeds=(0,),
                    betas=(0.9, 0.95),
                    warmup_steps=150,
                    clip=1.0,
                    eval_every=625,
                ),
                timing=TimingConfig(batch_size=8, T=256),
            ),
        ),
    )


def _gpu() -> SuiteSpec:
    cells = ((64, 4), (256, 16))
    return SuiteSpec(
        name="gpu",
        summary="the finding at a larger scale: MQAR at two lengths, 33 million tokens of text; one GPU",
        default_on=("cuda",),
        runs=(
            RunConfig(
                task="mqar",
                options=MQAROptions(
                    train_cells=tuple((*cell, 256_000) for cell in cells),
                    validation_cells=tuple((*cell, 1_000) for cell in cells),
                    test_cells=tuple((*cell, 3_000) for cell in cells),
                ),
                model=ModelConfig(d_model=64, layers="short_conv,MIXER"),
                training=TrainingConfig(
                    steps=2_000, batch_size=256, lrs=(1e-3, 3e-3, 1e-2), seeds=(0, 1), eval_every=500
                ),
                timing=TimingConfig(batch_size=256, T=256),
            ),
            RunConfig(
                task="pile",
                options=PileOptions(T=256, eval_tokens=131_072),
                model=ModelConfig(
                    d_model=128, layers="short_conv,MIXER,short_conv,MIXER", channel_mixer="swiglu", init_std=0.06
                ),
                training=TrainingConfig(
                    steps=4_000,
                    batch_size=32,
                    lrs=(3e-3,),
                    seeds=(0,),
                    betas=(0.9, 0.95),
                    warmup_steps=100,
                    clip=1.0,
                    eval_every=1_000,
                ),
                timing=TimingConfig(batch_size=32, T=256),
            ),
        ),
    )


def _paper(N: int, D: int, batch_size: int) -> SuiteSpec:
    """One length of figure 2 of arXiv:2312.04927 as published: chosen on the test split, stopped above 0.99, one seed.

    The published widths are 64, 128, 256 and 512 (--set mqar.model.d_model=128) and attention had learned positions
    (--mixer "attention(positions=learned)").
    """
    epoch = -(-100_000 // batch_size)
    run = RunConfig(
        task="mqar",
        options=MQAROptions(
            train_cells=((N, D, 100_000),), validation_cells=((N, D, 3_000),), test_cells=((N, D, 3_000),)
        ),
        model=ModelConfig(d_model=64, layers="MIXER*2", embedding_dropout=0.1),
        training=TrainingConfig(
            steps=64 * epoch,
            batch_size=batch_size,
            lrs=(1e-4, 4.64e-4, 2.15e-3, 1e-2),
            seeds=(123,),
            schedule="cosine-epoch",
            eval_every=epoch,
            stop_at=0.99,
            select="test",
        ),
        timing=TimingConfig(batch_size=batch_size, T=N),
    )
    name = "paper" if N == 64 else f"paper{N}"
    return SuiteSpec(
        name=name, summary=f"MQAR as published, N = {N}, D = {D} (arXiv:2312.04927, figure 2)", runs=(run,)
    )


def _hybrid(name: str, summary: str, layers: str) -> SuiteSpec:
    """A layout of the literature at the depth a CPU trains, with the tasks and the protocol of quick."""
    runs = tuple(replace(run, model=replace(run.model, layers=layers)) for run in _quick().runs)
    return SuiteSpec(name=name, summary=summary, runs=runs)


def _hybrids() -> Iterator[SuiteSpec]:
    yield _hybrid(
        "hybrid",
        "one layer of the mixer among three of BaseConv (published: 3 of 48, arXiv:2312.04927)",
        "base_conv(kernel=published)*4,at=3:MIXER",
    )
    yield _hybrid(
        "based",
        "the layout of Based (arXiv:2402.18668), with the mixer in place of its linear attention",
        "short_conv*5,at=2:MIXER,at=3:sliding_window(window=16)",
    )
    yield _hybrid(
        "jamba",
        "seven layers of the mixer to one of attention, the ratio of Jamba (arXiv:2403.19887)",
        "MIXER*8,at=5:attention",
    )


@hookimpl
def harness_suites() -> Iterator[SuiteSpec]:
    """Yields the presets: smoke, quick, gpu, the hybrids, and one paper preset a length."""
    yield _smoke()
    yield _quick()
    yield _gpu()
    yield from _hybrids()
    for N, D, batch_size in ((64, 4, 512), (128, 8, 512), (256, 16, 256), (512, 64, 128)):
        yield _paper(N, D, batch_size)
