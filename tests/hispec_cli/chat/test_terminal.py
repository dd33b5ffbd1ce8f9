"""`hispec chat` at a terminal, as a person meets it."""

import json
import resource
import shutil
import signal
import termios
from pathlib import Path

import pytest

from hispec import Engine
from hispec.conversation import Conversation
from hispec.session import Session, Turn, read_session, write_session
from hispec_cli.commands.chat.slash import COMMANDS
from tests.hispec_cli.chat.conftest import APPLES, CARDS, WHO, Person
from tests.hispec_cli.conftest import assert_message_and_hint
from tests.hispec_cli.ui.terminal import Terminal


@pytest.fixture
def talk(person):
    """The person at a new conversation with the settings of the beginning."""
    for command in ("/reset", "/system off", "/set temperature 0", "/set seed none", "/set max_new_tokens 256"):
        person.send(command)
    yield person
    person.control.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def answers():
    """Gives what the model answers to prompts, one after the other, when it is asked from Python."""
    engine = Engine.from_profile("tiny")

    def ask(*prompts):
        conversation = Conversation(engine)
        for prompt in prompts:
            list(conversation.ask(prompt))
        return [turn.answer for turn in conversation.turns]

    return ask


def test_answers_are_streamed_in_the_live_view(talk, answers):
    talk.control.write_text("slow")
    before = talk.prompts()
    talk.terminal.press(CARDS + "\r")
    talk.terminal.until(lambda seen: "12 + 5 = 17" in seen.text and "this cycle" in seen.text)
    assert "tokens per target pass" in talk.lines[-1] and talk.terminal.screen.cursor.hidden
    talk.control.unlink()
    talk.go_on(before)
    assert "this cycle" not in talk.terminal.text and not talk.terminal.screen.cursor.hidden
    assert "\n".join(talk.lines[-5:-2]) == answers(CARDS)[0]


def test_answers_are_kept_turn_by_turn(talk, answers):
    prompts = (APPLES, CARDS, WHO)
    for count, (prompt, answer) in enumerate(zip(prompts, answers(*prompts), strict=True), start=1):
        *text, figures = talk.send(prompt)[-len(answer.splitlines()) - 1 :]
        assert "\n".join(text) == answer
        assert "tokens per target pass" in figures
        session = talk.session("talk")
        assert [turn.prompt for turn in session.turns] == [*prompts[:count]]
        assert (session.turns[-1].answer, session.turns[-1].finish_reason) == (answer, "eos")


def test_help_names_every_command(talk):
    from hispec_cli.commands.chat.slash import COMMANDS

    lines = talk.send("/help")
    assert [line.split()[0] for line in lines[: len(COMMANDS)]] == [f"/{name}" for name in COMMANDS]
    assert " ".join(COMMANDS) == "help reset undo retry system set match show stats spec save load quit"


def test_undo_retry_and_reset(talk, answers):
    assert talk.send("/undo")[:1] == ["error: there is no turn yet"]
    assert talk.send("/retry")[:1] == ["error: there is no turn yet"]
    for prompt in (APPLES, CARDS):
        talk.send(prompt)
    expected = answers(APPLES, CARDS)
    assert expected[1].splitlines()[-1] in talk.send("/retry")
    assert [turn.answer for turn in talk.session("talk").turns] == expected
    assert talk.send("/undo") == [f"taken back: {CARDS[:57]}..."]
    assert [turn.prompt for turn in talk.session("talk").turns] == [APPLES]
    *_, aside = talk.send("/reset")[-1].split()
    assert talk.session("talk").turns == () and [turn.prompt for turn in talk.session(aside).turns] == [APPLES]


def test_set_and_spec(talk):
    assert talk.send("/set temperature 1.5") == ["temperature 1.5"]
    assert talk.send("/set seed 7") == ["seed 7"] and talk.send("/set max-new-tokens 12") == ["max_new_tokens 12"]
    assert "the answer reached max_new_tokens, 12; /set it for longer ones" in talk.send(APPLES)
    first = talk.session("talk")
    talk.send("/retry")
    second = talk.session("talk")
    assert [session.turns[0].seed for session in (first, second)] == [7, 8] and first.turns != second.turns
    assert second.options["temperature"] == 1.5 and len(second.turns[0].token_ids) == 12
    assert talk.send("/set top_k") == ["top_k 0"] and "seed 7" in talk.send("/set")
    assert talk.send("/set temperature hot")[0] == "error: temperature is 'hot', which is not a number"
    assert talk.send("/set temprature 1")[1] == "hint: did you mean temperature? /set lists them"
    assert "--dtype" in talk.send("/set dtype float32")[1] and "none" in talk.send("/set top_p none")[0]
    for loading in ("quantization 4bit", "device_map auto", "graphs on"):
        assert "is fixed once the model is loaded" in talk.send(f"/set {loading}")[0]
    assert talk.send("/set temperature 0") == ["temperature 0.0"]
    assert talk.send("/spec") == ["speculation is on (mode hispec)"]
    assert talk.send("/spec off") == ["mode autoregressive"]
    assert "12 tokens" in talk.send(APPLES)[-2] and "1.00 tokens per target pass" in talk.terminal.text
    assert talk.send("/spec on") == ["mode hispec"] and talk.send("/spec maybe")[0].startswith("error: /spec takes")


def test_system_show_and_stats(talk):
    assert talk.send("/system") == ["system: none", "/system TEXT gives another, /system off removes it"]
    assert talk.send("/system Be brief.") == ["system: Be brief."]
    talk.send(WHO)
    assert talk.session("talk").system == "Be brief."
    shown = "\n".join(talk.send("/show"))
    assert "target    builtin:tiny, 16 layers, float32 on cpu" in shown and "system    Be brief." in shown
    assert "draft exit 1" in shown and " of 2,048 tokens" in shown and "session   talk, " in shown
    talk.send(APPLES)
    stats = "\n".join(talk.send("/stats"))
    assert "of them already in the cache; first token after" in stats and "% accepted" in stats
    assert int(stats.split(" of them already")[0].split()[-1]) > 10


def test_save_and_load(talk, answers, tmp_path):
    talk.send(APPLES)
    file = tmp_path / "talk.json"
    assert f"saved: {file}" in "".join(talk.send(f"/save {file}"))
    saved = file.read_bytes()
    (tmp_path / "notes").write_text("mine")
    assert talk.send(f"/save {tmp_path}/notes")[0].startswith("error:") and (tmp_path / "notes").read_text() == "mine"
    talk.send("/reset")
    assert talk.send(f"/save {file}")[0] == "error: there is no turn yet" and file.read_bytes() == saved
    talk.send(WHO)
    lines = talk.send(f"/load {file}")
    assert answers(APPLES)[0].splitlines()[-1] in lines
    assert [turn.answer for turn in talk.session("talk").turns] == answers(APPLES)
    aside = [line for line in talk.lines if "conversation so far is saved" in line][-1].split()[-1]
    assert [turn.prompt for turn in talk.session(aside).turns] == [WHO]
    file.write_bytes(saved[:-9])
    assert "is not a complete saved conversation" in " ".join(talk.send(f"/load {file}")).replace("\n", "")
    assert [turn.answer for turn in talk.session("talk").turns] == answers(APPLES)
    assert talk.send("/load")[0] == "error: /load takes a file"


def test_what_is_no_command_is_refused_and_two_slashes_are_one(talk):
    assert talk.send("/undoo")[1].startswith("hint: did you mean /undo? /help lists them")
    shown = "\n".join(talk.send("/help"))
    assert all(f"/{name}" in shown for name in COMMANDS)
    assert all(key in shown for key in ("Alt-Enter", "Tab", "Ctrl-R", "Ctrl-C", "Ctrl-D", "Ctrl-X Ctrl-E"))
    assert talk.send("/help me")[0] == "error: /help takes no argument"
    talk.send("//usr")
    assert talk.session("talk").turns[0].prompt == "/usr"


def test_tab_completes_commands_and_what_they_take(talk, tmp_path):
    (tmp_path / "a-talk.json").touch()
    for typed, completed in (
        ("/he\t", "> /help"),
        ("/set tempe\t", "> /set temperature"),
        ("/set mode aut\t", "> /set mode autoregressive"),
        ("/spec of\t", "> /spec off"),
        (f"/load {tmp_path}/a-\t", f"> /load {tmp_path}/a-talk.json"),
        ("Who\t", "> Who"),
    ):
        talk.type(typed, completed)
        talk.terminal.press("\x03")
        talk.wait()


@pytest.mark.parametrize("step", ["prefill", "draft 3", "intermediate 4", "target 2"])
def test_ctrl_c_stops_the_answer_and_keeps_what_was_validated(talk, answers, step):
    before = talk.hold(step, CARDS)
    talk.terminal.press("\x03")
    talk.go_on(before)
    assert "stopped; the validated part of the answer is kept" in talk.lines
    (turn,) = talk.session("talk").turns
    assert turn.finish_reason == "interrupted" and turn.token_ids
    (whole,) = answers(CARDS)
    assert whole.startswith(turn.answer) and len(turn.answer) < len(whole)
    assert whole.splitlines()[-1] in talk.send("/retry")
    assert talk.session("talk").turns[0].answer == whole


def test_a_second_ctrl_c_does_not_wait_for_the_step(talk, answers):
    talk.send(APPLES)
    before = talk.hold("stuck target 2", CARDS)
    for _ in range(2):
        talk.terminal.press("\x03")
        talk.terminal.settle()
    talk.go_on(before)
    assert talk.lines[-2] == "stopped at once; the validated part of the answer is kept"
    whole, kept = answers(APPLES, CARDS)[1], talk.session("talk").turns[1]
    assert kept.token_ids and whole.startswith(kept.answer) and kept.finish_reason == "interrupted"
    assert whole.splitlines()[-1] in talk.send("/retry")


def test_when_memory_ends_the_program_goes_on_with_what_was_validated(talk, answers):
    talk.send(APPLES)
    before = talk.hold("memory 2", CARDS)
    talk.go_on(before)
    lines = talk.lines[talk.lines.index(next(line for line in talk.lines if line.startswith("error: out of memory"))) :]
    assert lines[0].endswith("tokens of the answer, kept") and lines[1].startswith("hint: ")
    assert [turn.finish_reason for turn in talk.session("talk").turns] == ["eos", "interrupted"]
    assert answers(APPLES, CARDS)[1].splitlines()[-1] in talk.send("/retry")


def test_ctrl_c_while_idle_clears_the_line_which_the_history_keeps(talk):
    talk.type("half a thought", "> half a thought")
    talk.terminal.press("\x03")
    talk.wait()
    before = talk.prompts()
    talk.terminal.press("\x03")
    talk.go_on(before)
    assert talk.lines[-2] == "Ctrl-D or /quit leaves"
    talk.type("\x1b[A", "> half a thought")
    talk.terminal.press("\x03")
    talk.wait()


def test_ctrl_r_searches_as_a_shell_does(talk):
    talk.send("/set max_new_tokens 4")
    talk.send("Tom has 24 pens.")
    for end in ("\x03", "\x07"):  # typed text comes back, even after a second find
        talk.type("half typed", "> half typed")
        talk.terminal.press("\x12s\x12")
        talk.terminal.settle()
        assert talk.lines[-1] == "I-search backward: s"
        talk.terminal.press(end)
        talk.type(" on", "> half typed on")
        talk.terminal.press("\x03")
        talk.wait()
    talk.terminal.press("\x12m has")
    talk.terminal.until(lambda seen: seen.lines[-1] == "I-search backward: m has")
    assert [line for line in talk.lines if line][-2] == "> Tom has 24 pens."
    talk.terminal.press("\x1b[F?")  # a key that moves ends the search and moves
    talk.type("", "> Tom has 24 pens.?")
    talk.terminal.press("\x03")
    talk.wait()
    talk.terminal.press("\x12m has 24 pens.\x7f")
    talk.terminal.until(lambda seen: seen.lines[-1] == "I-search backward: m has 24 pens")
    talk.send("")  # Enter sends what was found
    assert [turn.prompt for turn in talk.session("talk").turns] == ["Tom has 24 pens.", "Tom has 24 pens.?"]
    talk.type("\x12nowhere", "I-search backward: nowhere")
    talk.terminal.press("\r")  # nothing was found: nothing is sent
    talk.wait()
    assert len(talk.session("talk").turns) == 2


@pytest.fixture
def other(tmp_path):
    """Another person, who may leave."""
    person = Person(tmp_path, "--session", "other", columns=120)
    yield person
    person.terminal.child.close(force=True)


def test_what_is_typed_during_an_answer_is_not_shown_in_it_and_kept(other, answers):
    other.hold("target 2", CARDS)
    other.terminal.press("Why\x7fy i\rs\r")
    other.terminal.settle()
    assert "Wh" not in other.terminal.text and other.terminal.screen.cursor.hidden
    other.terminal.press("\x03")  # what was typed before is offered, not sent
    other.terminal.until(lambda seen: seen.lines[-2:] == ["> Why i", "  s"])
    assert [turn.prompt for turn in other.session("other").turns] == [CARDS]
    other.terminal.press("\x03")
    other.wait()
    other.hold("target 2", CARDS)
    other.terminal.press(WHO + "\r")
    other.terminal.settle()
    other.terminal.press("\x03\x03")
    other.terminal.until(lambda seen: seen.lines[-1] == "> " + WHO)
    other.terminal.press("\x03")
    other.wait()
    other.control.write_text("slow")
    before = other.prompts()
    other.terminal.press(CARDS + "\r")
    other.terminal.until(lambda seen: "this cycle" in seen.text)
    other.terminal.press(WHO + "\r")  # an answer that ends by itself: Enter sends, as in a shell
    other.control.unlink()
    other.terminal.until(lambda seen: other.prompts() > before + 1 and seen.lines[-1] == ">")
    assert [turn.prompt for turn in other.session("other").turns][-2:] == [CARDS, WHO]
    other.terminal.press("\x12\x04")  # Ctrl-D on an empty line leaves, from within a search too
    assert other.terminal.end() == 0


def test_what_is_typed_while_the_model_loads_is_not_shown_in_it_and_sent(tmp_path, answers):
    person = Person(tmp_path, "--session", "early", early=f"{WHO}\r")
    person.go_on(1)
    assert person.lines.count(f"> {WHO}") == 1 and answers(WHO)[0] in person.lines
    assert not [line for line in person.lines if WHO in line and line != f"> {WHO}"]
    assert not [line for line in person.lines if "importing" in line or "reading" in line]
    assert person.leave() == 0


def test_a_session_whose_folder_has_gone_is_not_said_to_be_saved(tmp_path, answers, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folder = tmp_path / "data" / "hispec" / "sessions"
    for leaves in ("kept in a temporary file", "kept by hand", "there again"):
        person = Person(tmp_path, "--session", leaves[:4], columns=300)
        person.send(WHO)
        shutil.rmtree(folder)
        text = "\n".join(person.send(CARDS))
        assert text.count("is not saved") == 1 and "/save FILE" in text and answers(WHO, CARDS)[1] in text
        if leaves == "kept by hand":
            person.send(f"/save {tmp_path}/mine.json")
        if leaves == "there again":
            folder.mkdir()
        assert person.leave() == (0 if leaves == "there again" else 5)
        *_, error, hint = person.lines
        if leaves == "there again":
            assert hint == "continue with: hispec chat --session ther" and len(person.session("ther").turns) == 2
            continue
        assert (
            error.startswith("error: the session kept was not saved: ") and "continue with" not in person.terminal.text
        )
        path = hint.split("/load ")[1]
        assert path == f"{tmp_path}/mine.json" or leaves != "kept by hand"
        assert [turn.prompt for turn in read_session(Path(path)).turns] == [WHO, CARDS]


def test_a_disk_on_which_nothing_can_be_written(tmp_path):
    folders = {"XDG_DATA_HOME": f"{tmp_path}/data", "XDG_STATE_HOME": f"{tmp_path}/state", "TMPDIR": str(tmp_path)}
    terminal = Terminal("chat", "--session", "full", columns=200, **folders)
    terminal.until(lambda seen: seen.lines and seen.lines[-1] == ">")
    resource.prlimit(terminal.child.pid, resource.RLIMIT_FSIZE, (0, 0))
    for count, text in enumerate((WHO, APPLES, "/reset", "/undo"), start=1):
        terminal.until(lambda seen, count=count: seen.sent.count(b"\x1b[?2004h") == count and seen.lines[-1] == ">")
        terminal.press(text + "\r")
    terminal.until(lambda seen: seen.sent.count(b"\x1b[?2004h") == 5)
    terminal.press("\x04")
    assert terminal.end() == 5
    assert terminal.text.count("error: the conversation is not saved") == 3  # two answers and what was taken back
    assert "a bug in" not in terminal.text and "continue with" not in terminal.text
    assert terminal.lines[-2].startswith("error: the session full was not saved") and "/save FILE" in terminal.lines[-1]


def test_a_blank_line_and_a_colour_tell_turns_apart(tmp_path):
    for environment, looks in (({}, ("bold", "2e8b57")), ({"NO_COLOR": "1"}, ("bold",))):
        person = Person(tmp_path, "--no-history", **environment)
        person.send(WHO)
        rows = [line.rstrip() for line in person.terminal.screen.display]
        at = rows.index("> " + WHO)
        ((text, look),) = person.terminal.runs(at)
        assert text.strip() == "> " + WHO and look[0] == "bold"
        assert len(look) == len(looks) and rows[at - 1] == "" and rows[at + 1].startswith("I am tiny")
        assert rows[at + 3] == "" and rows[at + 4] == ">"
        assert person.leave() == 0


def test_several_lines_by_alt_enter_and_backslash(talk):
    talk.type("first\\\rsecond\x1b\rthird", "> first\n  second\n  third")
    talk.send("")
    assert talk.session("talk").turns[0].prompt == "first\nsecond\nthird"


def test_two_hundred_pasted_lines_are_one_prompt(talk):
    lines = [f"{number} pens" for number in range(200)]
    talk.send("/set max_new_tokens 4")
    talk.terminal.press("\x1b[200~" + "\r\n".join(lines) + "\x1b[201~")
    talk.terminal.until(lambda seen: "  199 pens" in seen.lines)
    assert talk.session("talk").turns == ()
    talk.send("")
    assert talk.session("talk").turns[0].prompt == "\n".join(lines)


def test_a_conversation_that_is_too_long_is_refused_and_nothing_is_lost(talk, answers):
    talk.send(WHO)
    talk.terminal.press("\x1b[200~" + "Tom has 24 pens. " * 500 + "\x1b[201~")
    lines = talk.send("")
    assert "and the context of tiny holds 2048" in " ".join(lines) and lines[-1].startswith("hint: leave out earlier")
    assert [turn.prompt for turn in talk.session("talk").turns] == [WHO]
    assert answers(WHO, CARDS)[1].splitlines()[-1] in talk.send(CARDS)


def test_an_answer_that_fills_the_context_ends_there(talk):
    tokenizer = Engine.from_profile("tiny").tokenizer
    text = max(
        text for text in ("Tom has 24 pens. " * n for n in range(400)) if len(tokenizer(text)["input_ids"]) < 2030
    )
    talk.terminal.press(f"\x1b[200~{text}\x1b[201~")
    lines = talk.send("")
    assert "the context is full: /undo or /reset" in lines
    assert talk.session("talk").turns[0].finish_reason == "length"
    assert "leave out earlier turns" in talk.send(WHO)[-1]
    talk.send("/undo")
    assert "I am tiny, a small model that solves grade-school word problems." in talk.send(WHO)


def test_resizing_while_typing_and_while_answering(talk, answers):
    talk.type("Who are", "> Who are")
    talk.terminal.resize(50, 40)
    talk.type(" you?", "> Who are you?")
    talk.send("")
    before = talk.hold("target 2", CARDS)
    talk.terminal.resize(100, 40)
    talk.terminal.press("\x03")
    talk.go_on(before)
    talk.terminal.resize(120, 40)
    talk.terminal.settle()  # the prompt is drawn again
    assert answers(WHO, CARDS)[1].splitlines()[-1] in talk.send("/retry")
    assert "this cycle" not in talk.terminal.text


def test_another_process_cannot_have_the_session(talk, hispec):
    assert_message_and_hint(hispec("chat", "--session", "talk"), 2, "talk is open in another process", "--session")


def test_killed_in_mid_answer_it_goes_on_with_all_that_was_validated(tmp_path, answers):
    victim = Person(tmp_path, "--session", "victim", "--temperature", "0")
    victim.send(WHO)
    victim.hold("target 3", CARDS)
    shown = victim.session("victim")
    victim.terminal.child.kill(signal.SIGKILL)
    victim.terminal.end()
    journal = (tmp_path / "data/hispec/sessions/victim.journal").read_text().splitlines()
    noted = [token for line in journal[1:] for token in json.loads(line)["token_ids"]]
    assert len(noted) > 5 and [turn.prompt for turn in shown.turns] == [WHO]

    heir = Person(tmp_path, "--continue", columns=120)
    assert f"the last answer was cut off; its {len(noted)} validated tokens kept, /retry answers again" in heir.lines
    turn = heir.session("victim").turns[1]
    whole = answers(WHO, CARDS)[1]
    assert list(turn.token_ids) == noted and whole.startswith(turn.answer) and turn.answer
    heir.type("\x1b[A", "> " + CARDS)
    heir.terminal.press("\x03")
    heir.wait()
    assert whole.splitlines()[-1] in heir.send("/retry")
    assert heir.leave() == 0
    history = tmp_path / "state/hispec/chat-history"
    assert history.stat().st_mode & 0o777 == 0o600 and CARDS in history.read_text()


def test_text_from_a_session_is_shown_and_never_obeyed(tmp_path):
    evil = "\x1b[2J\x1b]0;owned\x07[red]\u202eX[/red]"
    folder = tmp_path / "data" / "hispec" / "sessions"
    folder.mkdir(parents=True)
    state = tmp_path / "state" / "hispec"
    state.mkdir(parents=True)
    (state / "chat-history").write_text(f"\n# now\n+old {evil}\n")
    write_session(folder / "evil.json", Session.new(system=evil, turns=(Turn(f"P{evil}", f"A{evil}", (1,), "eos"),)))
    person = Person(tmp_path, "--session", "evil", "--no-live", columns=100)
    shown = "\\x1b[2J\\x1b]0;owned\\x07[red]\\u202eX[/red]"
    assert person.lines[-3:-1] == [f"> P{shown}", f"A{shown}"]
    assert any(shown in line for line in person.send("/show"))
    assert any(shown in line for line in person.send("/undo"))
    person.type("\x1b[A\x1b[A\x1b[A", "> old ^[[2J^[]0;owned^G[red]\ufffdX[/red]")
    person.terminal.press("\x03")
    person.wait()
    assert b"\x1b[2J" not in person.terminal.sent and "\u202e".encode() not in person.terminal.sent
    assert person.leave() == 0


def test_markdown_no_history_and_a_request_to_end(tmp_path):
    person = Person(tmp_path, "--no-history", "--markdown")
    lines = person.send(APPLES)
    assert "####" not in "".join(lines) and [line.strip() for line in lines[-5:-1]] == [
        "4 * 3 = 12",
        "3 + 12 = 15",
        "",
        "15",
    ]
    before = termios.tcgetattr(person.terminal.child.fileno())[3]
    person.terminal.child.kill(signal.SIGTERM)
    person.terminal.until(lambda seen: termios.tcgetattr(seen.child.fileno())[3] != before)  # no longer line editing's
    assert person.terminal.end() == 128 + signal.SIGTERM
    assert not list(tmp_path.rglob("*history*")) and not list(tmp_path.rglob("*.json"))
