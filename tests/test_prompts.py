"""The prompts that the grammar writes, and their expansion by a language model."""

from __future__ import annotations

import collections
import contextlib
import http.server
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from wr1_jax.camera import words
from wr1_jax.camera.words import Move
from wr1_jax.config import DataConfig
from wr1_jax.data import chat, expand_prompts, prompts, write_prompts
from wr1_jax.data.grammar import paths, scenes, sentences, writer
from wr1_jax.data.grammar.paths import Tier
from wr1_jax.errors import UserError

SHIPPED = Path(prompts.__file__).parents[1] / "assets" / "prompts"
THEMES = (
  "natural landscapes",
  "urban and architecture",
  "micro and still life",
  "fantasy and surreal",
  "artistic styles",
)
STATIC_TIERS = {"implicit": 200, "single": 190, "composite": 180, "fixed": 30}  # of each theme
DYNAMIC_TIERS = {"implicit": 190, "single": 150, "composite": 110, "fixed": 50}


@pytest.fixture(scope="module")
def written():
  return writer.generate(write_prompts.SEED, write_prompts.STATIC, write_prompts.DYNAMIC)


@pytest.fixture(scope="module")
def every(written):
  static, dynamic = written
  return static + dynamic


def test_shipped_files_are_what_the_command_writes(written):
  for name, part, load in zip(("static", "dynamic"), written, (prompts.load_static, prompts.load_dynamic)):
    assert (SHIPPED / f"{name}.txt").read_bytes() == write_prompts.file_content(part), name
    assert load(DataConfig()).texts == tuple(prompt.text for prompt in part)


def test_themes_and_tiers_have_their_numbers(written):
  static, dynamic = written
  counts = collections.Counter((prompt.theme, str(prompt.tier)) for prompt in static)
  assert counts == {(theme, tier): count for theme in THEMES for tier, count in STATIC_TIERS.items()}
  counts = collections.Counter((prompt.theme, str(prompt.tier)) for prompt in dynamic)
  assert counts == {("dynamic", tier): count for tier, count in DYNAMIC_TIERS.items()}


def test_families_are_drawn_evenly(every):
  counts = collections.Counter((prompt.theme, prompt.family) for prompt in every)
  for theme in (*sentences.STATIC, sentences.DYNAMIC):
    of_theme = [counts[theme.name, family.name] for family in theme.families]
    assert max(of_theme) - min(of_theme) <= 1, theme.name


def test_prompts_ask_for_exactly_the_moves_meant(every):
  for prompt in every:
    assert words.parse(prompt.text) == prompt.moves, prompt
    assert words.parse(prompt.scene) == () and "camera" not in prompt.scene.lower(), prompt
    assert (prompt.camera == "") == (prompt.tier == Tier.IMPLICIT)
    count = {Tier.IMPLICIT: (0,), Tier.SINGLE: (1,), Tier.COMPOSITE: (2, 3), Tier.FIXED: (1,)}[prompt.tier]
    assert len(prompt.moves) in count and (Move.FIXED in prompt.moves) == (prompt.tier == Tier.FIXED), prompt


def test_every_move_is_asked_for_often_and_both_sides_alike(written):
  static, dynamic = written
  for part, least in ((static, 60), (dynamic, 9)):
    counts = collections.Counter(move for prompt in part for move in prompt.moves)
    assert set(counts) == set(Move) and min(counts.values()) >= least, counts
    for left in (move for move in Move if move.endswith("left")):
      right = counts[Move(left.replace("left", "right"))]
      assert abs(counts[left] - right) <= 0.2 * (counts[left] + right), (left, counts)


def test_only_things_are_circled(every):
  around = {family.name: family.around for theme in (*sentences.STATIC, sentences.DYNAMIC) for family in theme.families}
  for prompt in every:
    if any("orbit" in move for move in prompt.moves):
      assert around[prompt.family], prompt


def test_no_scene_comes_twice_or_nearly_so(every):
  assert len({re.sub(r"\W+", " ", prompt.scene.lower()) for prompt in every}) == len(every)
  rows, columns, vocabulary = [], [], {}
  for row, prompt in enumerate(every):
    for word in set(re.findall(r"\w{4,}", prompt.scene.lower())):
      rows.append(row)
      columns.append(vocabulary.setdefault(word, len(vocabulary)))
  holds = scipy.sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)))
  sizes = np.asarray(holds.sum(axis=1)).ravel()
  shared = (holds @ holds.T).tocoo()
  overlap = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data)
  assert overlap[shared.row != shared.col].max() <= 0.6
  assert len(vocabulary) > 3000


def test_lengths_vary_within_bounds(every):
  lengths = np.array([len(prompt.scene.split()) for prompt in every])
  assert lengths.min() >= 12 and lengths.max() <= 45
  assert np.percentile(lengths, 10) <= 18 and np.percentile(lengths, 90) >= 28


def test_spelling(every):
  for text in (prompt.text for prompt in every):
    assert re.fullmatch(r"[A-Z].*\.", text) and not re.search(r"[][{}|_]|\s\s|\s[,.:]|[,:]\.|\.\.|,,", text), text
    assert not re.search(r"\b(\w+)[\s,:]+\1\b", text, re.IGNORECASE), text  # double words
    assert not re.search(r"[.] [a-z]", text), text
    for article, word in re.findall(r"\b(an?) (\w+)", text, re.IGNORECASE):
      sounds_like_vowel = word[0].lower() in "aeiou" and not re.match("uni|use|eu|one|ukiyo", word, re.IGNORECASE)
      assert (article.lower() == "an") == (sounds_like_vowel or word.startswith("hour")), f"{article} {word}: {text}"


def test_same_seed_same_prompts_and_other_seed_others():
  small = writer.generate(3, 50, 20)
  assert small == writer.generate(3, 50, 20)
  assert not {prompt.text for prompt in small[0]} & {prompt.text for prompt in writer.generate(4, 50, 20)[0]}


@pytest.mark.parametrize("static, dynamic", [(1, 1), (7, 3), (101, 13)])
def test_any_number_of_prompts(static, dynamic):
  some, moving = writer.generate(0, static, dynamic)
  assert len(some) == static and len(moving) == dynamic


def test_shares_are_exact():
  assert writer.shares(10, {"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
  assert writer.shares(5, {"a": 1, "b": 9}) == {"a": 1, "b": 4}


def test_the_command_writes_both_files(tmp_path):
  command = [
    sys.executable,
    "-m",
    "wr1_jax.data.write_prompts",
    f"--out={tmp_path / 'new'}",
    "--static=40",
    "--dynamic=9",
  ]
  subprocess.run(command, check=True)
  assert [len(prompts.read_lines(tmp_path / "new" / f"{name}.txt")) for name in ("static", "dynamic")] == [40, 9]


def test_what_cannot_be_written_is_said(tmp_path):
  with pytest.raises(UserError, match="--dynamic=0 must be at least 1"):
    write_prompts.write(tmp_path, dynamic=0)
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be written"):
    write_prompts.write(tmp_path / "file", static=1, dynamic=1)


def test_an_exhausted_grammar_is_said(monkeypatch):
  family = sentences.DYNAMIC.families[0]
  poor = sentences.Theme("poor", "motion", ("{S}, {d}, {L}.",), (), ())
  poor.__dict__["families"] = (
    scenes.Family(family.name, False, family.subjects[:1], family.details[:2], family.lights[:1], (), ()),
  )
  monkeypatch.setattr(sentences, "DYNAMIC", poor)
  with pytest.raises(UserError, match=f"cannot write so many.*'{family.name}' of 'poor' ended at"):
    writer.generate(0, 1, 30)


# Word lists.


def test_choices_and_conditions():
  readings = scenes.expand("a [red|] cup [on|under] a table {tea|coffee}")
  assert [phrase.text for phrase in readings] == [
    "a red cup on a table",
    "a red cup under a table",
    "a cup on a table",
    "a cup under a table",
  ]
  assert readings[0].suits("Teapots") and not readings[0].suits("steam")
  (other,) = scenes.expand("cobwebs {!mangrove}")
  assert other.suits("an oak") and not other.suits("a mangrove")


@pytest.mark.parametrize(
  "text, said",
  [
    ("details:\n  a cup\n", "line 1.*outside"),
    ("= a\nsubjects:\n  a [red|blue cup\n", "line 3.*brackets"),
    ("= a\nsubjects:\n  a cup {\n", "line 3.*brackets"),
    ("= a\nsubjects:\n  a cup\ndetails:\n  a spoon\n", "'a' has no lights and no skies"),
  ],
)
def test_wrong_word_lists_are_said(tmp_path, text, said):
  file = tmp_path / "theme.txt"
  file.write_text(text)
  with pytest.raises(UserError, match=said):
    scenes.load(file)


def test_conditions_name_words_that_occur():
  for theme in (*sentences.STATIC, sentences.DYNAMIC):
    for family in theme.families:
      context = " ".join(phrase.text for phrase in (*family.subjects, *family.lights))
      for phrase in (*family.details, *family.lights, *family.skies, *family.remarks):
        for word in filter(None, phrase.condition.removeprefix("!").split("|")):
          assert scenes.Phrase("", word).suits(context), f"{family.name}: {phrase.text} {{{word}}}"


def test_every_subject_has_things_to_say_of_it():
  for theme in (*sentences.STATIC, sentences.DYNAMIC):
    for family in theme.families:
      for subject in family.subjects:
        lights = [light for light in family.lights if light.suits(subject.text)]
        assert len(lights) >= 2, f"{family.name}: {subject.text}"
        said = [f"{subject.text} {light.text}" for light in lights]
        assert all(sum(detail.suits(one) for detail in family.details) >= 2 for one in said), said


def test_what_is_said_of_a_path_holds_no_camera_words():
  for move in Move:
    for text in (*paths.leads(move), *paths.turns(move)):
      assert words.parse(text) == () and "camera" not in text


# Expansion.


class _Server(http.server.ThreadingHTTPServer):
  """A fake chat endpoint: `reply(scene, count)` answers the count-th request of a scene, maybe with (status, body)."""

  daemon_threads = True

  def __init__(self, reply):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.reply, self.lock = reply, threading.Lock()
    self.asked: list[str] = []
    self.keys: set[str | None] = set()

  @property
  def url(self) -> str:
    return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(http.server.BaseHTTPRequestHandler):
  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    scene = body["messages"][-1]["content"]
    with self.server.lock:
      self.server.asked.append(scene)
      self.server.keys.add(self.headers["Authorization"])
      count = self.server.asked.count(scene)
    reply = self.server.reply(scene, count)
    message = lambda text: json.dumps({"choices": [{"message": {"content": text}}]})
    status, text = reply if isinstance(reply, tuple) else (200, message(reply))
    assert self.path == "/v1/chat/completions" and body["model"] == "m"
    self.send_response(status)
    self.end_headers()
    self.wfile.write(text.encode())

  def log_message(self, *arguments):
    pass


@contextlib.contextmanager
def _serving(reply):
  with _Server(reply) as server:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
  monkeypatch.setenv("no_proxy", "127.0.0.1")


def _expand(server, texts, folder, workers=3):
  endpoint = chat.ChatEndpoint(server.url, "m", pause=0.01)
  return expand_prompts.expand(texts, endpoint, folder / "answers.jsonl", workers)


PROMPTS = ("Camera push in, then pan left. A quiet street.", "A pond.", "camera Fixed.  A red door.", "A pond.")


def test_scenes_are_expanded_and_camera_sentences_kept(tmp_path):
  with _serving(lambda scene, count: f' "{scene[:-1]},\n seen up close." ') as server:
    outcome = _expand(server, PROMPTS, tmp_path)
  assert outcome.texts == (
    "Camera push in, then pan left. A quiet street, seen up close.",
    "A pond, seen up close.",
    "camera Fixed.  A red door, seen up close.",
    "A pond, seen up close.",
  )
  assert outcome.expanded == 4 and outcome.kept == ()
  assert sorted(server.asked) == ["A pond.", "A quiet street.", "A red door."]


@pytest.mark.parametrize(
  "bad", ["", "   ", "word " * 121, "A pond. Push in.", "A lily fixed to the bottom.", "The camera glides.", None]
)
def test_unusable_answers_are_asked_for_again_and_then_given_up(tmp_path, bad):
  with _serving(lambda scene, count: bad if scene == "A pond." or count < 3 else "A red door, ajar.") as server:
    outcome = _expand(server, ("A pond.", "Camera fixed. A red door."), tmp_path)
    assert outcome.texts == ("A pond.", "Camera fixed. A red door, ajar.")
    assert outcome.expanded == 1 and outcome.kept == ("A pond.",)
    assert sorted(server.asked) == ["A pond."] * 3 + ["A red door."] * 3


def test_moves_within_a_scene_must_stay(tmp_path):
  prompt = "A street, and we push in."
  replies = {
    1: "A long street.",
    2: "A long street, and we push in, then pull out.",
    3: "A long street, and we Push in.",
  }
  with _serving(lambda scene, count: replies[count]) as server:
    assert _expand(server, (prompt,), tmp_path).texts == (replies[3],)


def test_thoughts_are_dropped(tmp_path):
  with _serving(lambda scene, count: "<think>A pond?\nThe camera...</think>\nA green pond.") as server:
    assert _expand(server, ("A pond.",), tmp_path).texts == ("A green pond.",)


def test_a_second_call_asks_only_for_what_is_missing(tmp_path):
  texts = tuple(f"Pond {i}." for i in range(12))
  with _serving(lambda scene, count: (401, "no") if scene == "Pond 7." else f"{scene} Still.") as server:
    with pytest.raises(UserError, match="401.*--api-key-env"):
      _expand(server, texts, tmp_path, workers=1)
  answers = tmp_path / "answers.jsonl"
  assert answers.read_text().count("\n") == 7
  answers.write_text(answers.read_text() + '{"model": "m", "prompt": "Pond 8.", "te')  # killed while writing
  with _serving(lambda scene, count: f"{scene} Still.") as server:
    assert _expand(server, texts, tmp_path).texts == tuple(f"{text} Still." for text in texts)
    assert sorted(server.asked) == sorted(texts[7:])
    server.asked.clear()
    assert _expand(server, texts, tmp_path).expanded == 12 and not server.asked
    other = chat.ChatEndpoint(server.url, "other")
    assert expand_prompts._read_answers(answers, other.model) == {}


def test_a_busy_server_is_asked_again(tmp_path):
  with _serving(lambda scene, count: (503, "busy") if count < 4 else "A still pond.") as server:
    assert _expand(server, ("A pond.",), tmp_path).expanded == 1


@pytest.mark.parametrize(
  "reply, said",
  [
    ((401, "bad key"), "wants a valid key .401.*bad key"),
    ((404, "no such model"), "refused the request .404.*--model=m right.*no such model"),
    ((429, "slow down"), "answered 429 to 4 requests"),
    ((200, "<html>hello</html>"), "not answer like a chat endpoint, but with: <html>hello"),
    ((200, '{"choices": []}'), "not answer like a chat endpoint"),
    ((200, ""), "not answer like a chat endpoint, but with: nothing"),
  ],
)
def test_wrong_endpoints_are_said(tmp_path, reply, said):
  with _serving(lambda scene, count: reply) as server:
    with pytest.raises(UserError, match=said):
      _expand(server, ("A pond.", "A lake.", "A sea."), tmp_path)


def test_addresses_that_lead_nowhere_are_said(tmp_path):
  with _serving(lambda scene, count: "") as server:
    url = server.url
  with pytest.raises(UserError, match="cannot be reached"):
    expand_prompts.expand(("A pond.",), chat.ChatEndpoint(url, "m"), tmp_path / "answers.jsonl", 2)
  for url in ("localhost:8000/v1", "ftp://host/v1", "http://"):
    with pytest.raises(UserError, match="is no address"):
      chat.ChatEndpoint(url, "m")


def test_the_expansion_command(tmp_path, monkeypatch, capsys):
  file, out = tmp_path / "in.txt", tmp_path / "out.txt"
  file.write_text("\n".join(PROMPTS))
  monkeypatch.setenv("SOME_KEY", "secret")
  with _serving(lambda scene, count: "" if "street" in scene else f"{scene} Café.") as server:
    arguments = [f"--prompts={file}", f"--out={out}", f"--url={server.url}/", "--model=m", "--api-key-env=SOME_KEY"]
    monkeypatch.setattr(sys, "argv", ["expand_prompts", *arguments])
    expand_prompts.main()
    assert server.keys == {"Bearer secret"}
  lines = out.read_text(encoding="utf-8").splitlines()
  assert lines == [PROMPTS[0], "A pond. Café.", "camera Fixed.  A red door. Café.", "A pond. Café."]
  said = capsys.readouterr().out
  assert "3 of 4 prompts expanded" in said and "1 stayed as they were" in said and PROMPTS[0] in said
  for wrong, message in ((f"--out={file}", "would be lost"), ("--workers=0", "at least 1")):
    monkeypatch.setattr(sys, "argv", ["expand_prompts", *arguments, wrong])
    with pytest.raises(SystemExit, match="2"):
      expand_prompts.main()
    assert message in capsys.readouterr().err
