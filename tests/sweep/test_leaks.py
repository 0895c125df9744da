"""A mixer that reads the labels, or changes what measures it, has no score."""

from harness.store import Store

LEAKS = """
    import sys
    import time

    class Leaks(Good):
        '''Looks for the labels in the frames that called it, and answers with their embeddings.'''

        def forward(self, x):
            y = super().forward(x)
            frame = sys._getframe()
            while frame is not None and "batch" not in frame.f_locals:
                frame = frame.f_back
            if frame is None or self.training:
                return y
            batch, model = frame.f_locals["batch"], frame.f_locals["model"]
            answers = model.embedding.weight[torch.from_numpy(batch.targets)]
            y.view(-1, y.shape[-1])[torch.from_numpy(batch.rows)] = 1e4 * answers
            return y

    class StopsTheClock(Good):
        def forward(self, x):
            time.perf_counter = lambda: 0.0
            return super().forward(x)

    @hookimpl
    def harness_mixers():
        yield spec("leaks", lambda config: Leaks(config.d_model))
        yield spec("stops_the_clock", lambda config: StopsTheClock(config.d_model))
        yield spec("good", lambda config: Good(config.d_model))
"""


def test_labels_that_are_read_and_clocks_that_are_stopped_leave_no_score(tiny):
    tiny.write_plugin(LEAKS)
    done = tiny.run("--mixer", "leaks", "--mixer", "stops_the_clock", "--mixer", "good")
    found = {(s.record.mixer.partition("/")[0], s.record.kind): s.record for s in Store(tiny.runs).records()}
    assert found["leaks", "train"].measures["accuracy"].value == 1.0  # it does work where the labels can be seen
    assert found["leaks", "test"].reason == "the answers change when the labels are hidden: something reads them"
    assert "a plugin replaced time.perf_counter" in found["stops_the_clock", "train"].reason
    assert found["good", "test"].status == "ok"
    assert done.returncode == 1
