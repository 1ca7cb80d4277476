r"""Read an answer from prose: what a label names, what is set bold, what a calculation or a closing sentence comes to.

Chat models end their texts in a few dozen ways; each pattern here stands for one of them, and `tests/corpus` has the
completions that it was written for, and those that it must leave alone. A text that was cut, that restates the question
or refuses has no answer. No paper.

Example:
    >>> read_labelled("Two halves. **Answer:** 1 because 2/2 = 1"), read_unlabelled("So he earns $120 in 8 hours.")
    ('1', '$120')
"""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["last_number", "read_labelled", "read_unlabelled"]

MAX_WORDS_ALONE = 12  # of a text that is an answer as a whole

# --- What names an answer ---

_EMPHASIS = r"[*_`]*"
_LABEL = re.compile(
    rf"""
    answer\ is(?![A-Za-zé]){_EMPHASIS}[:：]?\s*  # no boundary in front: small models write it behind half a word
    | \b(?:answers?|results?|(?:correct|right|best)\ (?:option|choice|statement)) \s* {_EMPHASIS}
      (?: \s*[:：]{_EMPHASIS}
        | \s+ (?:of\ [^\n.:=]{{1,40}}?\ )?
          (?:is|would\ be|must\ be|should\ be|could\ be|may\ be|might\ be|can\ be|equals)(?![A-Za-zé])
          {_EMPHASIS}[:：]? ) \s*
    | \b(?:option|choice)\ is(?![A-Za-zé]) {_EMPHASIS}[:：]? \s*
    | \b(?:total|sum|value) \s* {_EMPHASIS}[:：]{_EMPHASIS} \s*
    | \b(?:réponse|antwort|(?:end)?ergebnis|respuesta|risposta|resposta|resultado|risultato|ответ|результат)
      (?:\s+(?:finale?|correcta?|correta|corretta|definitiva))? \s* {_EMPHASIS}
      (?: \s*[:：]{_EMPHASIS} | \s+(?:è|é|es|est|ist|lautet|равен|равна|равно|—|-)(?!\w){_EMPHASIS}[:：]? ) \s*
    | (?:答案|答え|回答|正解|정답|답) \s* {_EMPHASIS} \s* (?:[:：]|(?:是|为|為|は|은|는)[:：]?) {_EMPHASIS} \s*
    | 故选\s*[:：]?
    | (?:الإجابة|الجواب|उत्तर) {_EMPHASIS} \s* (?:[:：]|هو|هي|है) {_EMPHASIS} \s*
    | \#\#\#\#[ \t]*:?\s*
    | ^[ \t\#>*_-]*(?:the\ )?final\ answer(?!\s+(?:is|would|must|should|could|may|might|can|equals)\b)
      \s*{_EMPHASIS}[:：]?{_EMPHASIS}\s*
    | ^[ \t\#*_]*(?:final\ )?answer[ \t*_:：]*\n\s*
    | ^A[:：]\s
    | \b(?:actually|correction|no|wait)[,:]?\ (?:it|that|this)\ (?:is|should\ be)\s
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
# Each label has one of these in it: most texts have none, and a search for a word is far cheaper than the pattern.
_WORDS_OF_LABELS = (
    *("answer", "result", "option", "choice", "statement", "total", "sum", "value", "####", "a:", "a：", "actually"),
    *("correction", "no ", "no,", "wait", "réponse", "antwort", "ergebnis", "respuesta", "risposta", "resposta"),
    *("resultado", "risultato", "ответ", "результат", "答", "正解", "답", "故选", "الإجابة", "الجواب", "उत्तर"),
)
_MARKED = re.compile(r"(\*\*|\$\$|\$|`|\\\(|\\\[)\s*(.+?)\s*(\*\*|\$\$|\$|`|\\\)|\\\])", re.DOTALL)
_CLOSING_MARK = {"**": "**", "$$": "$$", "$": "$", "`": "`", r"\(": r"\)", r"\[": r"\]"}
# Where an answer ends on its line: a sentence, a reason, an apposition, a remark in brackets.
_PLAIN_NUMBER = re.compile(r"([-+]?\d+(?:\.\d+)?)\.?")
_END = re.compile(
    r"[.!?](?=\s+[A-Z*(])|[.!?]?(?=\s*$)|。"
    r"|, (?:the|an?|i\.e\.?,?|or) (?=[a-z\d])|,? (?:because|since|as|which|where|so that|given that)\b"
    r"|(?<=\d) \(|(?<=\w) \((?:not|since|because|i\.e|also|or)\b"
)
_COPULA_BEHIND = re.compile(r"(?<=[\d\w*$)）])(?:です|である|だ|입니다|이다|예요|이에요)[.。]?$")
_CONNECTION = re.compile(
    r"(?i)^(?:donc|alors|also|thus|therefore|then|indeed|simply|clearly|actually|still|now|just|only|exactly)[,:]?\s+"
)
_TAKES_BACK = re.compile(
    r"(?i)(?:^|[.!?]\s+)(?:no|wait|actually|sorry|correction|hmm|oops|on second thought)\b[,.:!…-]*\s+(?P<rest>.+)"
)
_CHOICE_FIRST = re.compile(
    r"(?:[Oo]ption |[Cc]hoice |[Ll]etter )?\(?([A-Z])\)?(?=\s+(?:because|since|as|is|,)\b|,\s|[.!]?$)"
)

# --- What shows an answer ---

_BOLD = re.compile(r"\*\*(?=\S)([^*\n]+?)\*\*")
_STEP = re.compile(
    r"(?i)(?:step|case|part|note|given|problem|example|question|method|solution|check|hint|let)\b.*|.*[:：]|\d+[.)].*"
)
# A dollar between two figures is a currency: `4 x $5 = $20`.
_DISPLAY = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\$([^$\n]+)\$(?!\d)|\\\((.+?)\\\)", re.DOTALL)
_EQUATION = re.compile(r"[^=|;<>]*[\w)}\]%!'](?: ?\\?=|=) ?(?P<value>[^=|;<>]+)", re.DOTALL)
_OPERATION = re.compile(r"[+*/×÷·⋅−^!(\\-]|\d\s*x\s*\d|(?:^|\s)[A-Za-z]\w*\s*=")
_FIRST_WORD = re.compile(r"(?i)\W{0,3}(yes|no|true|false)\b(?=[\s*_`]*[,.:;!—–-]|[*_`]*\s*$)")
_LETTERED = re.compile(r"\(?[A-Z]\)?[.):]\)?\s+\S.*|\([A-Z]\)\s*\S.*")
_MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_NUMBER = re.compile(
    rf"(?:{_MONTH} \d{{1,2}}(?:, \d{{4}})?|\d{{1,2}} {_MONTH}(?: \d{{4}})?|\d{{1,2}}:\d\d(?: ?[ap]\.?m\b)?"
    r"|(?<![A-Za-z\d_.])(?:[-−+]?[$€£¥]?\d{1,3}(?:,\d{3})+(?:\.\d+)?|[-−+]?[$€£¥]?\d+(?:\.\d+)?(?:/\d+(?:\.\d+)?)?)"
    r"(?:\s?\\?%| ?[ap]\.?m\b| (?:thousand|million|billion|trillion)\b)?(?![A-Za-z\d_]))"
)
_ENUMERATION = re.compile(
    rf"(?:{_NUMBER.pattern}, )*{_NUMBER.pattern},? and {_NUMBER.pattern}$|{_NUMBER.pattern}(?: {_NUMBER.pattern})+$"
)
_LISTED = re.compile(rf"(?:{_NUMBER.pattern}, )*{_NUMBER.pattern},? and {_NUMBER.pattern}(?=[.!]?$)")
_CAPTION = re.compile(r"[^:：\d={\[\"|]{2,60}[:：]\s+(?P<value>.+)")
_PROSE = re.compile(
    r"(?i)\b(?:is|are|was|were|has|have|had|i|we|you|it|that|this|can|will|adds?|means?|gives?|makes?|so"
    r"|the .* (?:of|in))\b"
)
_OPENS_WORK = re.compile(r"(?i)(?:step|note|##|first|then|next|let|consider|sure|ok)\b")
_WORDS_OF_A_CUT = frozenset(
    re.findall(
        r"\w+",
        """
        the a an of to and in with by is are then at for that per from or as on into than if so we this which
        und der die das ein insgesamt de la le les et y el un una
        """,
    )
)

# --- What a sentence comes to ---

_SENTENCE = re.compile(r".*?(?:[.!?。](?=\s|$)|$)", re.DOTALL)
_STATEMENT = re.compile(r"(?:The|There|It|So|He|She|We|They|This|Therefore|Thus|Hence)\b.*[.!]$")
_ASIDE = re.compile(
    r"(?i)^(?:i hope|let me know|would you|feel free|is there anything|please|if you|do you|to verify|verif|check|note)"
)
_DRAWN = re.compile(
    r"(?i)(?:so|hence|thus|therefore|in total|altogether|overall|finally|in conclusion|also|donc|daher|por lo tanto)\b"
    r"|所以|因此|故"
)
_CONDITION = re.compile(
    r"(?i)^(?:(?:so|hence|thus|therefore),? )?(?:if|when|since|because|as|after|with|for|at|out of|of|in)\b[^,]*, "
)
_MAIN_VERB = re.compile(
    r"(?i)\b(?:gives?|makes?|leaves?|equals?|results? in|comes? to|costs?|produces?|pays?|earns?|needs?|takes?|totals?"
    r"|adds? up to|holds?|contains?|gets?|receives?|spends?|saves?|travels?|drives?|is|are|has|have)\b|需要"
)
_NO_CONCLUSION = re.compile(
    r"(?i)\b(?:we are given|is given|are given|I have|will think|the question|the problem|asks?|mentions?|i will"
    r"|i would|let us|let me|we need|first|how many|how much|cannot|can't|don't|do not|not sure|unclear|sorry|difficult"
    r"|step by step|unknown|for example|suppose|assume)\b"
)
_NAME = r"(?-i:[A-Z])[\w'-]*(?: (?:of |de |the )?(?-i:[A-Z])[\w'-]*){0,3}"
_COPULA = re.compile(rf"(?i)\b(?:is|are|was|were)\s+(?:called |known as |the |an? )?(?P<what>{_NAME})[.!]?$")
_VERDICT = re.compile(r"(?i)\bis (true|false|correct|incorrect)$")
_OPTION = re.compile(r"(?:[Oo]ption|[Cc]hoice|[Aa]nswer) \(?([A-Z])\)?")


def last_number(text: str) -> str | None:
    """Return the last number, date or time of a text, with its currency or per cent sign."""
    found = _NUMBER.findall(text)
    return found[-1] if found else None


def read_labelled(text: str, start: int = 0) -> str | None:
    """Read what stands behind the last label that says something.

    Args:
        text: what is behind the thought.
        start: where a box begins: labels in front of it do not count, and one that names it has said nothing new.
    """
    for match in _labels_from_the_end(text, start):
        rest = text[match.end() :].lstrip()
        if start and r"\boxed" in rest.partition("\n")[0]:
            return None
        if answer := _first_statement(rest):
            taken_back = _TAKES_BACK.search(rest.partition("\n")[0])
            return (_of_sentence(taken_back["rest"]) if taken_back else None) or answer
    return None


def _labels_from_the_end(text: str, start: int) -> Iterator[re.Match[str]]:
    """Find the labels line by line, the last first."""
    # letter by letter: `İ` is two in lower case, and places in both texts have to be the same
    lowered = text.lower() if text.isascii() else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    words = [word for word in _WORDS_OF_LABELS if word in lowered]
    end = len(text)
    while words and (at := max(lowered.rfind(word, start, end) for word in words)) >= 0:
        begin = max(text.rfind("\n", 0, at) + 1, start)
        behind = text.find("\n", at)
        found = []
        for label in _LABEL.finditer(text, begin):
            if 0 <= behind <= label.start():
                break
            found.append(label)
        yield from reversed(found)
        end = begin


def _first_statement(rest: str) -> str | None:
    """Read an answer from what follows its label: what is set off by marks, else the line up to a reason."""
    line = rest.partition("\n")[0] if not rest.startswith(("$$", r"\[")) else rest
    line = _COPULA_BEHIND.sub("", _CONNECTION.sub("", line.strip()))
    if number := _PLAIN_NUMBER.fullmatch(line):
        return number[1]
    if line.startswith("<answer>") or line.endswith("<answer>"):  # cut
        return None
    marked = _MARKED.match(line)
    if marked and marked[3] == _CLOSING_MARK[marked[1]] and marked[2] != "not":
        behind = line[marked.end() :].lstrip(" .*_")
        if not behind or marked[1] in ("**", "`") or behind[0] in ",;(" or behind[0].isalpha():
            return _last_side(marked[2])
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
    numbers = _NUMBER.findall(line)
    num_words = len(re.findall(r"[^\W\d_]{2,}", line))
    if len(numbers) == 1 and num_words > 2 and line[0].isalpha() and "=" not in line:
        return str(numbers[0])  # a sentence in whatever language
    return _last_side(line) or None


def _last_side(text: str) -> str:
    """Return the value behind the last equals sign of a calculation; any other text as it is."""
    if "=" not in text:
        return text.strip()
    match = _EQUATION.fullmatch(text.strip()) or _EQUATION.fullmatch(
        text.strip().rpartition("=")[0] + "=" + text.rpartition("=")[2]
    )
    if match is None or "==" in text:
        sides = [side.strip() for side in text.split("=")]
        return sides[-1] if len(sides) > 2 and all(sides) and not set("<>|;,") & set(text) else text.strip()
    left = text.strip()[: match.start("value")].rstrip("= ")
    return match["value"].strip() if _OPERATION.search(left + "=") or left.isalpha() else text.strip()


def read_unlabelled(text: str) -> str | None:
    """Read an answer that no label names: set off by letter, code or bold, else what the closing lines come to."""
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
    if len(lines) > 1 or "**" in text:
        bold = [b.strip() for b in _BOLD.findall(text) if not _STEP.fullmatch(b.strip())]
        if bold and not bold[-1].endswith("?"):
            return _of_statement(bold[-1])
    return _of_closing_lines(_before_asides(lines))


def _of_closing_lines(lines: list[str]) -> str | None:
    """Read what a text ends with: a line of code, a formula, an answer alone, a caption, a calculation, a sentence."""
    closing, body = lines[-1], "\n".join(lines)
    if len(lines) > 2 and closing == "```" and lines[-3].startswith("```"):
        return lines[-2]
    formulas = [formula for formula in _DISPLAY.finditer(body) if len(body) - formula.end() <= 2]
    if formulas and (formulas[-1].start() == 0 or body[formulas[-1].start() - 1] == "\n"):
        return _of_display(formulas[-1])
    if _is_one_of_options(closing, lines):
        return None
    if _is_alone(closing) and not _CAPTION.fullmatch(closing):
        return _of_statement(closing)
    if formulas:
        return _of_display(formulas[-1])
    caption = _CAPTION.fullmatch(closing)
    if caption and _is_alone(caption["value"]) and not _STEP.fullmatch(closing.partition(":")[0]):
        return _value_of(caption["value"])
    return _of_equation(closing) or _of_sentence(closing, _of_equation(lines[-2]) if len(lines) > 1 else None)


def _of_statement(text: str) -> str:
    """Read a value out of what is set bold or stands alone: behind a caption, in a sentence, or all of it."""
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
    if _DRAWN.match(line) or re.match(r"\d+[.)]\s", line) or (words and words[-1].lower() in _WORDS_OF_A_CUT):
        return False
    if len(words) > 5 and re.search(r"\d", line) and any(word.isalpha() for word in words):
        return False
    # A sentence is no answer by itself; without its full stop, it may even be cut.
    is_sentence = len(words) > 5 and any(word[:1].islower() for word in words) and line.endswith((".", "!"))
    return not (is_sentence or _PROSE.search(line) or _OPENS_WORK.match(line))


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
    number = _NUMBER.match(value)
    if number and len(value[number.end() :].split()) > 1:  # `18 - 4 = 14 years old`
        return number[0]
    return value if re.match(r"[-+−]?[\w\\$(\[{.√]", value) else None


def _of_sentence(line: str, calculated: str | None = None) -> str | None:
    """Read what a closing line comes to: the name it ends with, or the number of its main clause.

    Args:
        line: one or more sentences.
        calculated: what the line before comes to; the sentence is then about this, if it has it.
    """
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
    if verdict := _VERDICT.search(clause):
        option = _OPTION.search(clause)
        return option[1] if option else verdict[1]
    if named := _COPULA.search(clause):
        return named["what"]
    return _of_main_clause(_CONDITION.sub("", clause), calculated)


def _of_main_clause(clause: str, calculated: str | None) -> str | None:
    all_numbers = [str(number) for number in _NUMBER.findall(clause)]
    if calculated in all_numbers:
        return calculated
    verb = _MAIN_VERB.search(clause)
    # What follows the verb, or else stands in front of it: "12 of the 20 students are boys".
    numbers = (verb and _NUMBER.findall(clause, verb.end())) or (all_numbers if verb else all_numbers[-2:])
    if not numbers or (verb is None and len(numbers) > 1):
        return None
    if listed := _ENUMERATION.search(clause):
        return re.sub(r",? and ", ", ", listed[0])
    is_hedged = re.search(rf"(?:\d|\beither\b\D*) (?:or|to)(?: maybe| perhaps)? *[$€£]?{_NUMBER.pattern}", clause)
    return clause if is_hedged else str(numbers[0])
