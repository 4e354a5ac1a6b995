"""Tokens as text, as they come: a token may be half a character, which nobody wants to see."""

from jaxpipe.data import Tokenizer

_BROKEN = "\ufffd"  # what stands for bytes that are no character, or not yet
_MOST = 8  # tokens that may be waited for: no character has as many bytes


class Characters:
    """The text of one sequence, in pieces that are whole.

    >>> from jaxpipe.data import Bytes
    >>> euro = Characters(Bytes())
    >>> [euro.add(byte) for byte in "4 €".encode()], euro.rest()
    (['4', ' ', '', '', '€'], '')
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """With nothing yet."""
        self._tokenizer = tokenizer
        self._before: list[int] = []  # tokens whose text has been given, as far as it matters
        self._waiting: list[int] = []

    def add(self, token: int) -> str:
        """The text that is whole with one more token; empty while a character is not."""
        self._waiting.append(token)
        text = self._text()
        if text.endswith(_BROKEN) and len(self._waiting) < _MOST:
            return ""
        return self._give(text)

    def rest(self) -> str:
        """What is left at the end, half a character perhaps, as a sign that says so."""
        return self._give(self._text())

    def _text(self) -> str:
        """Of the tokens that wait. What a token reads as may depend on the one before it."""
        whole = self._tokenizer.decode([*self._before, *self._waiting])
        return whole[len(self._tokenizer.decode(self._before)) :]

    def _give(self, text: str) -> str:
        self._before, self._waiting = self._waiting or self._before, []
        return text
