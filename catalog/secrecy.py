"""Text without what lets its reader in somewhere; for errors, logs, and reasons that are recorded."""

from __future__ import annotations

import logging
import re

HIDDEN = "***"
_SPEAKERS = ("huggingface_hub", "datasets")  # libraries with a handler of their own, which log addresses as they are

_NAME = (
    r"(?:pass(?:word|wd|phrase|code)|\bpwd\b|secret|token|credential|signature|\bcookie\b|session[_-]?id|"
    r"(?:access|account|api|auth|encryption|master|private|secret|shared|signing|storage)[_-]?key)[\w.-]{0,64}"
)
_QUOTE = r"\\{0,8}[\"']?"
_VALUE = (
    r"(?:\\{1,8}\"(?:(?!\\{1,8}\").)*(?:\\{1,8}\"|$)"  # of JSON within JSON
    r"|b?\"(?:\\.|[^\"\\])*(?:\"|$)"
    r"|b?'(?:\\.|[^'\\])*(?:'|$)"
    r"|\S+)"
)
# Bounded wherever a start is not, so that long text takes time in proportion.
_RULES = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), sign)
    for pattern, sign in (
        (r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY.*?(?:-----END [A-Z ]{0,40}-----|$)", HIDDEN),
        # Users and passwords of URLs, which may hold / and @ themselves: a host with a port may be a user.
        (r"(://)(?:[^\s/:]{0,200}:\S{0,500}|[^\s/]{0,500})@", rf"\1{HIDDEN}@"),
        (r"(?<![\w/\\])[^\s:/@'\"<>(]{1,64}:(?!//)[^\s'\"]{0,200}[^\s'\"/]@(?=[\w\[])", f"{HIDDEN}@"),
        (r"\?(?=\S{0,500}[=&])\S+", f"?{HIDDEN}"),  # a signed URL is a password
        (r"(://[^\s?]{0,500})\?\S+", rf"\1?{HIDDEN}"),
        (rf"(<[\w:.-]{{0,64}}{_NAME}(?:\s[^<>]{{0,200}})?>).*?(?=</|$)", rf"\1{HIDDEN}"),
        (rf"(authorization{_QUOTE}\s*[=:]\s*{_QUOTE})[^\"'\r\n\\]+", rf"\1{HIDDEN}"),
        (rf"({_NAME}{_QUOTE}\s*(?:=>|[=:])\s*){_VALUE}", rf"\1{HIDDEN}"),
        (rf"(--?[\w-]{{0,64}}{_NAME}\s+){_VALUE}", rf"\1{HIDDEN}"),
        # What is encoded looks unlike a word: "basic features" stays.
        (r"\b(bearer|basic)\s+(?-i:(?=\S{0,200}(?:[\d=+/]|\w[A-Z])))[\w.~+/=-]{6,}", rf"\1 {HIDDEN}"),
        (r"\b(?:hf_|api_org_|gh[opusr]_|github_pat_|glpat-|xox[a-z]-|pnu_|pnb_)[\w.-]{8,}", HIDDEN),
        (r"\b(?-i:(?:AKIA|ASIA)[A-Z0-9]{8,}|AIza[\w-]{8,})", HIDDEN),
        (r"\b(?:sk-(?:proj-)?|eyJ)[\w.-]{16,}", HIDDEN),
    )
)


def without_secrets(text: str) -> str:
    """Text without users and passwords of URLs, their queries, tokens, and values that are called secrets.

    To be called before a text is shortened: half a URL no longer says that it holds a password. In doubt, more goes.
    """
    for pattern, sign in _RULES:
        text = pattern.sub(sign, text)
    return text


class _Cleaner(logging.Handler):
    """Takes secrets out of records themselves, so that the handlers after it never see them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Says nothing by itself."""
        record.msg, record.args = without_secrets(record.getMessage()), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = without_secrets(record.exc_text)


def guard_logs() -> None:
    """Have the Hub's client, and what is built upon it, log nothing that lets somebody in: signed addresses above all.

    What their loggers and all beneath them say passes a cleaner before any other handler, in this library's or in the
    user's own logging. A filter would not do: one of a logger is not asked about records of the loggers beneath it.
    To be called before the libraries are imported or after, and as often as one likes.
    """
    for name in _SPEAKERS:
        handlers = logging.getLogger(name).handlers
        if not (handlers and isinstance(handlers[0], _Cleaner)):
            handlers[:] = [_Cleaner(), *(own for own in handlers if not isinstance(own, _Cleaner))]
