"""A language model for tests that answers by a function of the question."""

from palate.rewards.chat import Reply


class FakeChat:
    """Answers by a function of the question's text."""

    name = "fake"
    blind = None

    def __init__(self, answer, finished=True):
        self.answer = answer
        self.finished = finished
        self.asked = []

    def reply(self, questions, *, samples=1, temperature=0.0, max_new_tokens=9, seed=0):
        self.asked += questions
        replies = []
        for question in questions:
            texts = self.answer(question[0]["content"])
            texts = texts if isinstance(texts, list) else [texts] * samples
            replies.append([Reply(text=text, finished=self.finished) for text in texts])
        return replies

    def choose(self, questions, options):
        self.asked += questions
        return [self.answer(question[0]["content"]) for question in questions]
