r"""Read the answer of a completion: one reader, with a name, for rewards, votes, `evaluate` and `serve`.

What a model thinks before it answers is no answer: a closed thought is passed over, and a completion whose thought never
ended has none. Behind the thought, the reader `auto` takes the first of these that is there: `<answer>`, a box or a
labelled answer (whichever stands last), what is set bold, the value of a closing equation, a short text as a whole, and
what a closing sentence comes to. No paper; the styles that it is measured on are in `tests/corpus`.

Example:
    >>> read("Adding both, 12 + 7 = 19. **Final Answer:** 19"), read("<think>the answer is 3</think>4"), read("Let me see")
    ('19', '4', None)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from posttrain_plugins.errors import InputError

__all__ = ["READERS", "THOUGHT_MARKS", "check_reader", "opens_thought", "read", "read_reference", "without_thought"]

THOUGHT_MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
MAX_WORDS_ALONE = 12  # of a text that is an answer as a whole

_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|([^\s{$\\]))")
_EMPHASIS = r"[*_`]*"
_IS = r"(?:is|are|was|would be|must be|should be|comes to|equals|è|é|es|est|ist|lautet|é|равен|равна|равно|—|-)"
_LABEL = re.compile(
    # `answer is` without a boundary: small models write it behind half a word
    rf"answer is(?![A-Za-zé]){_EMPHASIS}[:：]?\s*"
    rf"|\b(?:answers?|results?|(?:correct|right|best) (?:option|choice|statement)|option|choice)\s*{_EMPHASIS}"
    rf"(?:\s*[:：]{_EMPHASIS}|\s+(?:of [^\n.:=]{{1,40}}? )?(?:is|would be|must be|should be|could be|may be|might be|can be|equals)(?![A-Za-zé]){_EMPHASIS}[:：]?)\s*"
    rf"|\b(?:total|sum|value)\s*{_EMPHASIS}[:：]{_EMPHASIS}\s*"
    rf"|\b(?:réponse|antwort|(?:end)?ergebnis|respuesta|risposta|resposta|resultado|risultato|ответ|результат)"
    rf"(?:\s+(?:finale?|correcta?|correta|corretta|definitiva))?\s*{_EMPHASIS}(?:\s*[:：]{_EMPHASIS}|\s+{_IS}(?!\w){_EMPHASIS}[:：]?)\s*"
    rf"|(?:答案|答え|回答|正解|정답|답)\s*{_EMPHASIS}\s*(?:[:：]|(?:是|为|為|は|은|는)[:：]?){_EMPHASIS}\s*"
    rf"|(?:الإجابة|الجواب|उत्तर){_EMPHASIS}\s*(?:[:：]|هو|هي|है){_EMPHASIS}\s*"
    rf"|####[ \t]*:?\s*"
    rf"|^[ \t#>*_-]*(?:the )?final answer(?!\s+(?:is|would|must|should|could|may|might|can|equals)\b)\s*{_EMPHASIS}[:：]?{_EMPHASIS}\s*"
    rf"|^[ \t#*_]*(?:final )?answer[ \t*_:：]*\n\s*"
    rf"|\b(?:actually|correction|no|wait)[,:]? (?:it|that|this) (?:is|should be) "
    rf"|故选\s*[:：]?|^A[:：]\s",
    re.IGNORECASE | re.MULTILINE,
)
_MARKED = re.compile(r"(\*\*|\$\$|\$|`|\\\(|\\\[)(?!\*\*not\b)\s*(.+?)\s*(?:\*\*|\$\$|\$|`|\\\)|\\\])", re.DOTALL)
_CLOSING_MARK = {"**": "**", "$$": "$$", "$": "$", "`": "`", r"\(": r"\)", r"\[": r"\]"}
# Where an answer ends on its line: a sentence, a reason, a remark in brackets that takes something back.
_END = re.compile(
    r"[.!?](?=\s+[A-Z*(])|[.!?]?(?=\s*$)|。|, (?:the|an?|i\.e\.?,?|or) (?=[a-z\d])|,? (?:because|since|as|which|where|so that|given that)\b|(?<=\d) \(|(?<=\w) \((?:not|since|because|i\.e|also|or)\b"
)
_COPULA_BEHIND = re.compile(r"(?<=[\d\w*$)）])(?:です|である|だ|입니다|이다|예요|이에요)[.。]?$")
_CONNECTION = re.compile(r"(?i)^(?:donc|alors|also|thus|therefore|then|indeed|simply|clearly|actually|still|now|just|only|exactly)[,:]?\s+")
_TAKES_BACK = re.compile(r"(?i)(?:^|[.!?]\s+)(?:no|wait|actually|sorry|correction|hmm|oops|on second thought)\b[,.:!…-]*\s+(?P<rest>.+)", re.DOTALL)
_CHOICE_FIRST = re.compile(r"(?:[Oo]ption |[Cc]hoice |[Ll]etter )?\(?([A-Z])\)?(?=\s+(?:because|since|as|is|,)\b|,\s|[.!]?$)")
_BOLD = re.compile(r"\*\*(?=\S)([^*\n]+?)\*\*")
_STEP = re.compile(r"(?i)(?:step|case|part|note|given|problem|example|question|method|solution|check|hint|let)\b.*|.*[:：]|\d+[.)].*")
_DISPLAY = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\$([^$\n]+)\$(?!\d)|\\\((.+?)\\\)", re.DOTALL)
_EQUATION = re.compile(r"[^=|;<>]*[\w)}\]%!'](?: ?\\?=|=) ?(?P<value>[^=|;<>]+)", re.DOTALL)
_OPERATION = re.compile(r"[+*/×÷·⋅−^!(\\-]|\d\s*x\s*\d|(?:^|\s)[A-Za-z]\w*\s*=")
_FIRST_WORD = re.compile(r"(?i)\W{0,3}(yes|no|true|false)\b(?=[\s*_`]*[,.:;!—–-]|[*_`]*\s*$)")
_LETTERED = re.compile(r"\(?[A-Z]\)?[.):]\)?\s+\S.*|\([A-Z]\)\s*\S.*")
_MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_NUMBER = re.compile(
    rf"(?:{_MONTH} \d{{1,2}}(?:, \d{{4}})?|\d{{1,2}} {_MONTH}(?: \d{{4}})?|\d{{1,2}}:\d\d(?: ?[ap]\.?m\b)?"
    r"|(?<![A-Za-z\d_.])(?:[-−+]?[$€£¥]?\d{1,3}(?:,\d{3})+(?:\.\d+)?|[-−+]?[$€£¥]?\d+(?:\.\d+)?(?:/\d+(?:\.\d+)?)?)(?:\s?\\?%| ?[ap]\.?m\b| (?:thousand|million|billion|trillion)\b)?(?![A-Za-z\d_]))"
)
_STATEMENT = re.compile(r"(?:The|There|It|So|He|She|We|They|This|Therefore|Thus|Hence)\b.*[.!]$")
_ENUMERATION = re.compile(rf"(?:{_NUMBER.pattern}, )*{_NUMBER.pattern},? and {_NUMBER.pattern}$|{_NUMBER.pattern}(?: {_NUMBER.pattern})+$")
_LISTED = re.compile(rf"(?:{_NUMBER.pattern}, )*{_NUMBER.pattern},? and {_NUMBER.pattern}(?=[.!]?$)")
_CAPTION = re.compile(r"[^:：\d={\[\"|]{2,60}[:：]\s+(?P<value>.+)")
_SENTENCE = re.compile(r".*?(?:[.!?。](?=\s|$)|$)", re.DOTALL)
_ASIDE = re.compile(r"(?i)^(?:i hope|let me know|would you|feel free|is there anything|please|if you|do you|to verify|verif|check|note)")
# A text that ends with one of these was cut.
_GOES_ON = frozenset(
    "the a an of to and in with by is are then at for that per from or as und der die das ein insgesamt de la le les et y el un una"
    " on into than if so we this which".split()
)
_DRAWN = re.compile(r"(?i)(?:so|hence|thus|therefore|in total|altogether|overall|finally|in conclusion)\b|所以|因此|故|also|donc|daher|por lo tanto")
_CONDITION = re.compile(r"(?i)^(?:(?:so|hence|thus|therefore),? )?(?:if|when|since|because|as|after|with|for|at|out of|of|in)\b[^,]*, ")
_CONCLUDES = re.compile(
    r"(?i)^(?:so|hence|thus|therefore|then|finally|in total|altogether|overall|it is|it's|this (?:is|means|gives|makes|leaves))\b"
    r"|\b(?:gives?|makes?|leaves?|equals?|results? in|comes? to|costs?|produces?|pays?|earns?|needs?|takes?|totals?|adds? up to|is|are|has|have)\b"
    r"|需要|所以|因此|故"
)
_NO_CONCLUSION = re.compile(
    r"(?i)\b(?:we are given|is given|are given|I have|will think|the question|the problem|asks?|mentions?|i will|i would|let us|let me|we need|first|how many|how much|cannot|can't"
    r"|don't|do not|not sure|unclear|sorry|difficult|step by step|unknown|approximately speaking|for example|suppose|assume)\b"
)
_COPULA = re.compile(r"(?i)\b(?:is|are|was|were)\s+(?:called |known as |the |an? )?(?P<what>(?-i:[A-Z])[\w'-]*(?: (?:of |de |the )?(?-i:[A-Z])[\w'-]*){0,3})[.!]?$")


def read(text: str, reader: str = "auto", prompt: object = None) -> str | None:
    r"""Read the answer of a completion.

    Args:
        text: the completion; nothing makes it raise.
        reader: `auto`; `marked`, the same without what no tag, box or label names; `tag`, the last
            `<answer>...</answer>`; `boxed`, the last `\boxed{...}`; `last_number`; `whole`, the
            text behind the thought; or `regex:PATTERN`, the first group of the pattern's last match, else the match.
        prompt: what the completion follows, as text or messages; a thought that it opens goes on in the completion.

    Returns:
        The answer as it is written; None where none can be read.

    Raises:
        InputError: no such reader.

    Example:
        >>> read(r"so \boxed{\frac{1}{2}}, not 3"), read("13*5 = 65", prompt="<user>13*5?<assistant><think>\n")
        ('\\frac{1}{2}', None)
        >>> read("a: 3 b: 4", reader=r"regex:a: (\d+)")
        '3'
    """
    visible = without_thought(text, prompt)
    if visible is None:
        return None
    if reader == "auto":
        return _auto(visible)
    return (_reader(reader)(visible) or "").strip() or None


def check_reader(reader: str) -> str:
    """Return a reader's name if it is one.

    Raises:
        InputError: it is none, or its pattern is no regular expression.
    """
    _reader(reader)
    return reader


def read_reference(solution: object) -> str:
    r"""Return the answer of a reference: where it is a worked solution with an answer marked, this; else all of it.

    Example:
        >>> read_reference(r"so $x=18$, thus \boxed{18}"), read_reference("4 bowls a day, 17*4 = 68\n#### 68"), read_reference(7)
        ('18', '68', '7')
    """
    text = str(solution)
    if "\\" not in text and "<" not in text and "####" not in text:
        return text
    if (tagged := _tagged(text)) is not None:
        return tagged
    boxed = _boxed(text)
    if boxed is not None:
        return boxed[1]
    return text.rpartition("####")[2].strip() if "####" in text else text


def without_thought(text: str, prompt: object = None) -> str | None:
    """Return what stands behind the thought of a completion: all of it without one, None where the thought never ended.

    Example:
        >>> without_thought("<think>3</think> 4"), without_thought("<think>3"), without_thought("4")
        (' 4', None, '4')
    """
    is_opened = prompt is not None and opens_thought(prompt)
    for opening, closing in THOUGHT_MARKS:
        end = text.rfind(closing)
        if end >= 0:
            text = text[end + len(closing) :]
            is_opened = False
        if opening in text:
            return None
    return None if is_opened else text


def opens_thought(prompt: object) -> bool:
    """Return whether a prompt ends inside a thought: as text, or as messages whose last is the assistant's."""
    if isinstance(prompt, Sequence) and not isinstance(prompt, str):
        last = prompt[-1] if prompt else None
        is_begun = isinstance(last, dict) and last.get("role") == "assistant"
        prompt = last.get("content") if is_begun and isinstance(last, dict) else None
    if not isinstance(prompt, str):
        return False
    tail = prompt[-2000:]
    return any(tail.rfind(opening) > tail.rfind(closing) for opening, closing in THOUGHT_MARKS)


# --- Readers of what is behind the thought ---------------------------------------------------------------------------


def _tagged(text: str) -> str | None:
    found = _TAG.findall(text)
    return found[-1].strip() if found else None


def _boxed(text: str) -> tuple[int, str] | None:
    """Find the last box: where it begins, and what is in it."""
    for match in reversed(list(_BOX.finditer(text))):
        if match[1]:  # `\\boxed 5`: TeX takes one token
            return match.start(), match[1]
        depth = 1
        for i in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                return match.start(), text[match.end() : i].strip()
    return None


def _last_number(text: str) -> str | None:
    found = _NUMBER.findall(text)
    return found[-1] if found else None


READERS: dict[str, Callable[[str], str | None]] = {
    "auto": lambda text: _auto(text),
    "boxed": lambda text: (_boxed(text) or (0, None))[1],
    "tag": _tagged,
    "marked": lambda text: _marked(text),
    "last_number": _last_number,
    "whole": lambda text: text,
}


@lru_cache(maxsize=64)
def _reader(name: str) -> Callable[[str], str | None]:
    if name in READERS:
        return READERS[name]
    hint = f"reader: one of {', '.join(READERS)}, regex:PATTERN"
    if not isinstance(name, str) or not name.startswith("regex:"):
        raise InputError(f"there is no reader {name!r}", hint=hint)
    try:
        pattern = re.compile(name.removeprefix("regex:"), re.MULTILINE)
    except re.error as error:
        raise InputError(f"the pattern of the reader {name!r} cannot be used: {error}", hint=hint) from None

    def by_pattern(text: str) -> str | None:
        match = None
        for match in pattern.finditer(text):
            pass
        return None if match is None else match[1] if pattern.groups else match[0]

    return by_pattern


def _auto(text: str) -> str | None:
    is_named, answer = _named(text)
    return answer if is_named else _shown(text.strip())


def _marked(text: str) -> str | None:
    return _named(text)[1]


def _named(text: str) -> tuple[bool, str | None]:
    """Return whether a tag, a label or a box names an answer, and the answer, None for an empty one."""
    if "</" in text and (tagged := _tagged(text)) is not None:
        return True, (_labelled(tagged, 0) if " is " in tagged else None) or tagged or None
    box = _boxed(text) if "boxed" in text or "fbox" in text else None
    label = _labelled(text, box[0] if box else 0)
    if label is not None:
        return True, label
    is_cut = box is None and r"\boxed" in text
    return (True, box[1] or None) if box is not None else (is_cut, None)


def _labelled(text: str, start: int) -> str | None:
    """Read what stands behind the last label that says something, from a place on."""
    for match in reversed(list(_LABEL.finditer(text, start))):
        rest = text[match.end() :].lstrip()
        if start and r"\boxed" in rest.partition("\n")[0]:
            return None
        if answer := _first_statement(rest):
            taken_back = _TAKES_BACK.search(rest) if not start else None
            return (taken_back and _of_sentence(taken_back["rest"].partition("\n")[0])) or answer
    return None


def _first_statement(rest: str) -> str | None:
    """Read an answer from what follows its label: what is set off by marks, else the line up to where a reason begins."""
    line = rest.partition("\n")[0] if not rest.startswith(("$$", r"\[")) else rest
    line = _COPULA_BEHIND.sub("", _CONNECTION.sub("", line.strip()))
    if line.startswith("<answer>") or line.endswith("<answer>"):  # cut
        return None
    if marked := _MARKED.match(line):
        inner = marked[2]
        if inner != "not" and line[marked.end() - len(_CLOSING_MARK[marked[1]]) : marked.end()] == _CLOSING_MARK[marked[1]]:
            behind = line[marked.end() :].lstrip(" .*_")
            if not behind or marked[1] in ("**", "`") or behind[0] in ",;(" or behind[0].isalpha():
                return _last_side(inner)
    if choice := _CHOICE_FIRST.match(line):
        return choice[1]
    if first := _FIRST_WORD.match(line):
        return first[1]
    if listed := _LISTED.match(line):
        return re.sub(r",? and ", ", ", listed[0])
    if but := re.match(r"\W*not\W.{1,40}? but (.+)", line):
        line = but[1]
    if _STATEMENT.match(line) and (value := _of_sentence(line)):
        return value
    end = _END.search(line)
    line = (line[: end.start()] if end else line).strip().strip("*_` ").strip()
    return _last_side(line) or None


def _last_side(text: str) -> str:
    """Return the value behind the last equals sign of a calculation; any other text as it is."""
    if "=" not in text:
        return text.strip()
    match = _EQUATION.fullmatch(text.strip()) or _EQUATION.fullmatch(text.strip().rpartition("=")[0] + "=" + text.rpartition("=")[2])
    if match is None or "==" in text:
        sides = [side.strip() for side in text.split("=")]
        return sides[-1] if len(sides) > 2 and all(sides) and not set("<>|;,") & set(text) else text.strip()
    left = text.strip()[: match.start("value")].rstrip("= ")
    return match["value"].strip() if _OPERATION.search(left + "=") or left.isalpha() else text.strip()


def _shown(text: str) -> str | None:
    """Read an answer that no label names."""
    if not re.search(r"\w", text):
        return None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if first := _FIRST_WORD.match(lines[0]):
        return first[1]
    lettered = re.findall(r"\(([A-Z])\)", lines[-1])
    if len(lettered) == 1 and not _LETTERED.match(lines[-1]):
        return str(lettered[0])
    code = re.findall(r"`([^`]+)`", lines[-1])
    if len(code) == 1 and len(lines[-1]) > len(code[0]) + 3 and lines[-1].endswith("."):
        return str(code[0])
    if len(lines) == 1 and "**" not in text and _is_alone(lines[0]) and not _CAPTION.fullmatch(lines[0]):
        return _of_statement(lines[0])
    bold = [b.strip() for b in _BOLD.findall(text) if not _STEP.fullmatch(b.strip())]
    if bold and not bold[-1].endswith("?"):
        return _of_statement(bold[-1])
    lines = _before_asides(lines)
    closing = lines[-1]
    body = "\n".join(lines)
    if len(lines) > 2 and lines[-1] == "```" and lines[-3].startswith("```"):  # one line of code
        return lines[-2]
    display = list(_DISPLAY.finditer(body))
    if display and len(body) - display[-1].end() <= 2 and (display[-1].start() == 0 or body[display[-1].start() - 1] == "\n"):
        return _of_display(display[-1])
    if _is_alone(closing) and not _CAPTION.fullmatch(closing) and not _is_one_of_options(closing, lines):
        return _of_statement(closing)
    if display and len(body) - display[-1].end() <= 2:
        return _of_display(display[-1])
    caption = _CAPTION.fullmatch(closing)
    if caption and _is_alone(caption["value"]) and not _STEP.fullmatch(closing.partition(":")[0]):
        return _value_of(caption["value"])
    return _of_equation(closing) or _of_sentence(closing)


def _of_statement(text: str) -> str:
    """Read a value out of what is set bold or stands alone: behind a caption, in a sentence, at the end of an equation."""
    caption = _CAPTION.fullmatch(text)
    if caption and _is_alone(caption["value"]):
        return _value_of(caption["value"])
    is_sentence = text.endswith((".", "!")) and len(text.split()) > 3
    return (_of_sentence(text) if is_sentence else None) or _value_of(_last_side(text))


def _of_display(formula: re.Match[str]) -> str:
    inner = next(group for group in formula.groups() if group is not None).strip()
    sides = [side.strip() for side in re.split(r"(?<![<>!\\])=", inner)]
    # A chain of calculations comes to its last side; `y = 2x + 1` is an answer as it stands.
    return sides[-1] if len(sides) > 1 and all(sides) and not set(";") & set(inner) else inner


def _before_asides(lines: list[str]) -> list[str]:
    """Leave out the courtesies and checks behind an answer."""
    while len(lines) > 1 and (_ASIDE.match(lines[-1]) or lines[-1].endswith("?")):
        lines = lines[:-1]
    return lines


def _is_one_of_options(line: str, lines: list[str]) -> bool:
    """Return whether a lettered line goes on a list of options that are gone through."""
    return _LETTERED.fullmatch(line) is not None and sum(bool(_LETTERED.fullmatch(one)) for one in lines) > 1


def _is_alone(line: str) -> bool:
    """Return whether a line is an answer and nothing else: a value, a name, a lettered choice."""
    if _LETTERED.fullmatch(line):
        return True
    if line.rstrip("*_` ").endswith((",", ":", ";", "?", "...", "…")) or set(line) & set("|;<>#") or "=" in line:
        return False
    if line.count("{") != line.count("}") or line.count("$$") % 2:  # cut
        return False
    if line.endswith("。") or re.search(r"[\u3040-\u30ff\u4e00-\u9fff]{7}", line):  # a sentence without spaces
        return False
    words = line.strip("$*_` ").split()
    if len(words) > MAX_WORDS_ALONE:
        return False
    if _DRAWN.match(line) or re.match(r"\d+[.)]\s", line) or (words and words[-1].lower() in _GOES_ON):
        return False
    if len(words) > 5 and re.search(r"\d", line) and any(word.isalpha() for word in words):
        return False
    prose = re.search(r"(?i)\b(?:is|are|was|were|has|have|had|i|we|you|it|that|this|can|will|adds?|means?|gives?|makes?|so|the .* (?:of|in))\b", line)
    ends = line.endswith((".", "!"))
    # A sentence is no answer by itself; without its full stop, it may even be cut.
    if prose or (len(words) > 5 and any(word[:1].islower() for word in words) and ends):
        return False
    return not re.match(r"(?i)(?:step|note|##|first|then|next|let|consider|sure|ok)\b", line)


def _value_of(line: str) -> str:
    return line.removesuffix(".").strip()


def _of_equation(line: str) -> str | None:
    """Read the value behind the last equals sign of a closing line that is a calculation."""
    line = line.rstrip(". ").strip("$").replace("**", "")
    if "=" not in line or set(line) & set(";|<>"):
        return None
    left, _, value = line.rpartition("=")
    value = value.strip()
    # A name or a calculation in front, a value behind: `3|7=4` of a small model's scratch pad is neither.
    if not value or len(value.split()) > 4 or re.search(r"[.!?] ", value) or not _OPERATION.search(left.strip() + "="):
        return None
    return value if re.match(r"[-+−]?[\w\\$(\[{.√]", value) else None


def _of_sentence(line: str) -> str | None:
    """Read what a closing line comes to: its choice or code, the name it ends with, the number of its main clause."""
    sentences = [s.strip() for s in _SENTENCE.findall(line) if s.strip()]
    while sentences and _ASIDE.match(sentences[-1]):
        sentences.pop()
    if not sentences or not sentences[-1].endswith((".", "!", "。")):  # cut
        return None
    # What is drawn as a conclusion counts before what is said about it.
    sentence = next((s for s in reversed(sentences) if _DRAWN.match(s)), sentences[-1])
    if _NO_CONCLUSION.search(sentence):
        return None
    clause = re.split(r", (?:or|which|where|since|because|as|while|with)\b", sentence)[0].rstrip(".!。 ")
    if value := _of_equation(clause):
        return value
    if (first := _FIRST_WORD.match(sentence)) is not None:
        return first[1]
    if formulas := [f for groups in _DISPLAY.findall(clause) for f in groups if f]:
        return _last_side(formulas[-1])
    if verdict := re.search(r"(?i)\bis (true|false|correct|incorrect)$", clause):
        option = re.search(r"(?:[Oo]ption|[Cc]hoice|[Aa]nswer) \(?([A-Z])\)?", clause)
        return option[1] if option else verdict[1]
    if named := _COPULA.search(clause):
        return named["what"]
    clause = _CONDITION.sub("", clause)
    verb = _CONCLUDES.search(clause)
    # What follows the verb of the main clause, or else stands in front of it: "12 of the 20 students are boys".
    numbers = _NUMBER.findall(clause, verb.end() if verb else 0)[:1] or _NUMBER.findall(clause)[:1]
    if numbers and (verb or _DRAWN.match(sentence) or len(_NUMBER.findall(clause)) == 1):
        if listed := _ENUMERATION.search(clause):
            return re.sub(r",? and ", ", ", listed[0])
        hedge = re.search(r"(?:\d|\beither\b\D*) (?:or|to)(?: maybe| perhaps)? *[$€£]?" + _NUMBER.pattern, clause)
        return clause if hedge else str(numbers[-1])
    return None
