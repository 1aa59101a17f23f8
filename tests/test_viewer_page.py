"""The viewer page: what it does, in a headless Chromium (skipped where there is none).

    python tests/test_viewer_page.py docs/face.png      # the README's picture: the page, in the middle of a sentence
"""
import base64
import shutil
import sys
import tempfile
import zlib
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))       # for the command above; pytest.ini does it for pytest
from face import viewer
from face.head import make_head
from test_viewer import HOSTILE, TEXT, data_of, demo_sound, demo_track, write_hostile

LEVELS = 2      # of 255, by which two screenshots of one picture may differ: the browser rounds the ground's gradient

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("viewer")


@pytest.fixture(scope="module")
def hostile(folder):
    return write_hostile(folder)


@contextmanager
def chromium():
    """A headless browser with WebGL on the processor. Raises LookupError, which says what is missing."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise LookupError("playwright is not installed: pip install playwright") from None
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        raise LookupError("no Chromium found: apt-get install chromium")
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist",
             "--autoplay-policy=no-user-gesture-required", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser():
    try:
        with chromium() as found:
            yield found
    except LookupError as missing:
        pytest.skip(str(missing))


def wait(page, condition: str) -> None:
    """Until the JavaScript condition holds, 60 s at most. Playwright's own wait needs eval, which the page forbids."""
    assert page.evaluate(f"""async () => {{
      const until = performance.now() + 60000;
      while (!({condition}) && performance.now() < until) await new Promise(done => setTimeout(done, 20));
      return Boolean({condition});
    }}"""), condition


def open_page(browser, path: Path, width: int = 800, height: int = 500, script: str = "", **context):
    """The page once it is ready; `page.seen` collects requests, `page.complaints` console errors and exceptions."""
    page = browser.new_context(viewport={"width": width, "height": height}, **context).new_page()
    page.set_default_timeout(60000)
    page.seen, page.complaints = [], []
    page.on("request", lambda request: page.seen.append(request.url))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda line: page.complaints.append(line.text) if line.type in ("error", "warning") else None)
    page.add_init_script(script)
    page.goto(path.as_uri())
    wait(page, "window.viewer && viewer.ready")
    return page


@pytest.fixture(scope="module")
def page(browser, hostile):
    return open_page(browser, hostile)


def at(page, seconds: float) -> np.ndarray:
    """Seek, wait until it is rendered, and return the image of the head (height, width, 3)."""
    image = pytest.importorskip("PIL.Image")
    page.evaluate("t => { viewer.pause(); viewer.seek(t); return new Promise(done => requestAnimationFrame(() => "
                  "requestAnimationFrame(done))); }", seconds)
    return np.asarray(image.open(BytesIO(page.locator("#face").screenshot())).convert("RGB"), np.float32)


def test_weights_on_screen_are_the_tracks_between_two_frames(page):
    track = demo_track(300)
    for seconds in (0, 1.234, 5.017, 9.99):
        at(page, seconds)
        frame = min(seconds * 30, 299)
        expected = [np.interp(frame, np.arange(300), np.clip(column, 0, 1)) for column in track.T]
        assert abs(np.array(page.evaluate("viewer.weights()")) - expected).max() < 1e-5         # 16-bit steps: 8e-6


def test_the_face_is_at_rest_before_the_first_frame_and_after_the_last(browser, folder):
    """What is paused in between is held; within 0.2 s after the last frame everything fades."""
    viewer.write_viewer(folder / "half.html", np.full((30, 52), .5))
    page = open_page(browser, folder / "half.html")
    weights = lambda: np.array(page.evaluate("viewer.weights()"))
    for _ in range(2):
        assert not weights().any()
        for seconds, expected in ((0, .5), (.5, .5), (1, .5), (1.1, .25), (1.2, 0)):
            at(page, seconds)
            np.testing.assert_allclose(weights(), expected, atol=1e-4, err_msg=str(seconds))
        page.evaluate("viewer.select(0)")
        wait(page, "!viewer.weights()[0]")


def test_three_times_show_three_mouths(page):
    closed, wide, again, rounded = (at(page, frame / 30) for frame in (37, 27, 37, 87))     # PP, aa, PP, WW
    mouth = np.s_[len(closed) // 2:]
    assert closed.std() > 15                                                # a face before a ground, not one colour
    assert abs(closed - again).max() <= LEVELS                              # nothing but the time changes a picture
    for one, other in ((closed, wide), (wide, rounded), (closed, rounded)):
        assert (abs(one - other)[mouth].max(axis=-1) > 24).sum() > 100      # pixels that clearly differ


def test_markup_in_text_and_title_shows_as_text_and_does_nothing(page):
    assert page.locator("#words").text_content() == HOSTILE
    assert page.locator("h1").text_content() == page.title() == "</title><script>window.hurt=1</script>{{data}}"
    assert page.evaluate("window.hurt") is None and page.locator("img").count() == 0


def test_the_current_sentence_is_marked(page, hostile):
    for start, piece in data_of(hostile)["answers"][0]["sentences"]:
        at(page, start + 0.01)
        assert page.locator("#words [aria-current=true]").text_content() == piece.rstrip()


def test_nothing_is_rendered_while_nothing_changes(page):
    at(page, 1)
    assert page.evaluate("""async () => {
      const original = window.requestAnimationFrame;
      let asked = 0;
      window.requestAnimationFrame = action => { asked++; return original(action); };
      await new Promise(done => setTimeout(done, 300));
      const idle = asked;
      viewer.seek(2);
      window.requestAnimationFrame = original;
      return [idle, asked];
    }""") == [0, 1]


def test_keys_play_seek_mute_and_reset(page):
    at(page, 0)
    time = lambda: page.evaluate("viewer.time")
    for key, seconds in (("ArrowRight", 1 / 30), ("ArrowRight", 2 / 30), ("ArrowLeft", 1 / 30),
                         ("Shift+ArrowRight", 31 / 30), ("End", 10.2), ("Shift+ArrowLeft", 9.2), ("Home", 0)):
        page.keyboard.press(key)
        assert time() == pytest.approx(seconds, abs=1e-6), key
    page.keyboard.press("Space")
    assert page.evaluate("viewer.playing") and page.locator("#play").get_attribute("aria-label")
    wait(page, "viewer.time > 0.2")
    page.keyboard.press("Space")
    stopped = time()
    assert not page.evaluate("viewer.playing") and page.evaluate("viewer.audio.paused")
    page.wait_for_timeout(200)
    assert time() == stopped
    page.keyboard.press("m")
    assert page.evaluate("viewer.audio.muted")
    page.keyboard.press("m")
    page.mouse.move(200, 150)
    page.mouse.down()
    page.mouse.move(260, 170)
    page.mouse.up()
    page.mouse.wheel(0, -300)
    turned = page.evaluate("({...viewer.view})")
    page.keyboard.press("r")
    front = page.evaluate("({...viewer.view})")
    assert turned["yaw"] > front["yaw"] and turned["pitch"] > front["pitch"]
    wait(page, "viewer.view.zoom === 1")


def test_a_press_or_drag_on_the_waveform_seeks(page):
    box = page.locator(".lanes").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    assert page.evaluate("viewer.time") == pytest.approx(5.1, abs=0.02)         # 10.2 s on some 500 pixels
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 90)
    page.mouse.up()
    assert page.evaluate("viewer.time") == pytest.approx(8.16, abs=0.02)


def test_sound_and_face_advance_together(page):
    at(page, 2)
    apart, shown, played = page.evaluate("""async () => {
      viewer.play();
      const apart = [], until = performance.now() + 1500;
      while (performance.now() < until) {
        await new Promise(requestAnimationFrame);       // runs right after the page's own frame
        apart.push(Math.abs(viewer.time - viewer.audio.currentTime));
      }
      return [apart, viewer.time, viewer.audio.currentTime];
    }""")
    at(page, 0)
    assert max(apart) <= 1 / 30 and len(apart) > 3
    assert 2.5 < shown < 4 and 2.5 < played < 4


def test_it_stops_at_the_end_and_plays_again_from_the_start(page):
    at(page, 9.7)
    page.locator("#play").click()
    wait(page, "!viewer.playing")
    assert page.evaluate("viewer.time") == pytest.approx(10.2) and not any(page.evaluate("viewer.weights()"))
    assert page.locator("#play").get_attribute("aria-label") == "Play again"
    page.locator("#play").click()
    wait(page, "viewer.playing && viewer.time < 5")
    at(page, 0)


def test_the_head_comes_back_after_the_graphics_were_lost(page):
    before = at(page, 1)
    page.evaluate("""async () => {
      const canvas = document.getElementById("face");
      const lose = canvas.getContext("webgl").getExtension("WEBGL_lose_context");
      const event = name => new Promise(done => canvas.addEventListener(name, done, {once: true}));
      const lost = event("webglcontextlost"), back = event("webglcontextrestored");
      lose.loseContext();
      await lost;
      await new Promise(done => setTimeout(done));
      lose.restoreContext();
      await back;
    }""")
    assert abs(at(page, 1) - before).max() <= LEVELS


def test_a_phone_shows_all_of_it_without_sideways_scrolling(page):
    page.set_viewport_size({"width": 390, "height": 844})
    at(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for button in page.locator("button:visible").all():
        box = button.bounding_box()
        assert box["width"] >= 44 and box["height"] >= 44 and box["x"] >= 0 and box["x"] + box["width"] <= 390
    page.set_viewport_size({"width": 800, "height": 500})


def test_light_and_dark_follow_the_system_and_the_button(page):
    ground = lambda: page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    light = ground()
    page.emulate_media(color_scheme="dark")
    wait(page, "document.documentElement.dataset.theme === 'dark'")
    assert ground() != light
    page.locator("#theme").click()
    assert ground() == light


def test_everything_clickable_has_a_name(page):
    for element in page.locator("button:visible, input:visible, [role=img]").all():
        assert element.get_attribute("aria-label") or element.text_content().strip()


def test_no_request_leaves_the_page_and_nothing_complains(page, hostile):
    at(page, 3)
    assert [url for url in page.seen if not url.startswith(("file:", "data:", "blob:"))] == []
    assert [url for url in page.seen if url.startswith("file:")] == [hostile.as_uri()]
    assert page.complaints == []


def test_a_gallery_switches_between_answers_also_silent_and_uneven_ones(browser, folder):
    answers = [("First", demo_track(60), demo_sound(folder / "2s.wav", 2), "One."),
               ("Silent", demo_track(45), None, ""),
               ("Uneven", demo_track(40), demo_sound(folder / "1s.wav", 1), "<b>Three</b>")]
    viewer.write_gallery(folder / "gallery.html", answers)
    page = open_page(browser, folder / "gallery.html")
    buttons = page.locator("#gallery button")
    assert buttons.all_text_contents() == ["First", "Silent", "Uneven"]
    for i, seconds in ((1, 1.5 + .2), (2, 40 / 30 + .2), (0, 2 + .2)):
        buttons.nth(i).click()
        assert page.evaluate("viewer.duration") == pytest.approx(seconds)
        assert buttons.nth(i).get_attribute("aria-current") == "true"
        picture = at(page, 0.5)
        assert picture.std() > 15
        expected = np.clip(answers[i][1][15], 0, 1)
        assert abs(np.array(page.evaluate("viewer.weights()")) - expected).max() < 1e-5
    buttons.nth(1).click()                              # silent: a timer drives it
    page.evaluate("viewer.seek(1)")
    page.locator("#play").click()
    wait(page, "!viewer.playing && viewer.time === viewer.duration")
    buttons.nth(2).click()                              # the face outlasts the sound
    page.evaluate("viewer.seek(0.8)")
    page.locator("#play").click()
    wait(page, "!viewer.playing && viewer.time === viewer.duration")
    assert page.evaluate("viewer.audio.ended") and page.locator("#words").text_content() == "<b>Three</b>"
    assert page.complaints == []


def test_without_webgl_it_says_so_and_the_rest_works(browser, folder):
    viewer.write_viewer(folder / "plain.html", demo_track(30), audio=demo_sound(folder / "1s.wav", 1), text="Hello.")
    page = open_page(browser, folder / "plain.html", script="""
      const original = HTMLCanvasElement.prototype.getContext;
      HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
        return kind === "webgl" ? null : original.call(this, kind, ...rest);
      };""")
    assert "no WebGL" in page.locator("#message").text_content()
    page.locator("#play").click()
    wait(page, "viewer.time > 0.3")
    page.evaluate("viewer.seek(0.5)")
    assert page.evaluate("viewer.weights()[24]") > 0 and page.complaints == []


OLD = """      // what Safari 14, Firefox 90 or Chrome 90 lacks
for (const [owner, names] of [
    [Array, ["at", "findLast", "findLastIndex", "toSorted", "toReversed", "with"]], [String, ["at", "replaceAll"]],
    [Blob, ["stream"]]]) names.forEach(name => delete owner.prototype[name]);
["structuredClone", "DecompressionStream"].forEach(name => delete window[name]);
["hasOwn", "groupBy"].forEach(name => delete Object[name]);
"""


def test_a_browser_of_2021_shows_the_same_face(browser, page, hostile):
    """Without what browsers learnt later; a text that is written from right to left stays a text."""
    old = open_page(browser, hostile, script=OLD)
    assert old.evaluate("typeof DecompressionStream") == "undefined"
    assert abs(at(old, 1) - at(page, 1)).max() <= LEVELS and at(old, 1).std() > 15
    assert old.complaints == []


@pytest.mark.parametrize("level", [0, 1, 9])
def test_the_head_is_unpacked_as_it_was_packed(page, level):
    """level: of zlib; 0 stores, 1 and 9 have their own codes, and the short text has the fixed ones."""
    for raw in (bytes(range(256)) * 400 + np.random.default_rng(0).bytes(70_000), b"a short text, a short text"):
        packed = base64.b64encode(zlib.compress(raw, level)).decode()
        sums = page.evaluate("""([packed, size]) => { let sum = 0; inflate(bytes(packed), size).forEach((value, i) => {
          sum = (sum * 31 + value + i) % 4294967296; }); return sum; }""", [packed, len(raw)])
        wanted = 0
        for i, value in enumerate(raw):
            wanted = (wanted * 31 + value + i) % (1 << 32)
        assert sums == wanted


def test_a_head_above_65535_vertices_looks_the_same(browser, page, folder):
    """Our head, behind 65,536 vertices that no triangle uses: all its indices need 32 bits."""
    head, more = make_head(), 65_536
    large = replace(head, vertices=np.concatenate([np.tile(head.vertices[:1], (more, 1)), head.vertices]),
                    colors=np.concatenate([np.tile(head.colors[:1], (more, 1)), head.colors]), lips=head.lips + more,
                    faces=head.faces + more, deltas=np.pad(head.deltas, ((0, 0), (more, 0), (0, 0))))
    viewer.write_viewer(folder / "large.html", demo_track(300), audio=demo_sound(folder / "10s.wav", 10), head=large,
                        text=HOSTILE, title=page.title())
    assert abs(at(open_page(browser, folder / "large.html"), 1) - at(page, 1)).max() <= LEVELS


def test_a_sound_that_cannot_be_decoded_is_said_and_the_face_goes_on(browser, folder, monkeypatch):
    sound = demo_sound(folder / "1s.wav", 1)
    monkeypatch.setattr(viewer, "read_sound", lambda path: (b"not a sound", np.ones(100), 1.0))
    viewer.write_gallery(folder / "mute.html", [("Mute", demo_track(60), sound, "Hello."), ("Silent", demo_track(9),
                                                None, "")])
    page = open_page(browser, folder / "mute.html")
    wait(page, "document.getElementById('message').textContent === 'The sound cannot be played here.'")
    page.locator("#play").click()
    wait(page, "viewer.time > 0.5")
    assert at(page, 0.9).std() > 15 and not page.locator("#mute").is_visible()
    page.locator("#gallery button").nth(1).click()
    assert page.locator("#message").text_content() == ""
    page.locator("#gallery button").nth(0).click()
    assert "cannot be played" in page.locator("#message").text_content()


@pytest.mark.parametrize("frames", [1, 100_000])
def test_a_page_of_one_frame_and_of_an_hour(browser, folder, frames):
    text = "\u202ehello </script> \U0001f600 \"'` &amp; ${data}\\"
    viewer.write_viewer(folder / "long.html", np.resize(demo_track(300), (frames, 52)), text=text)
    page = open_page(browser, folder / "long.html")
    assert page.evaluate("viewer.duration") == pytest.approx(frames / 30 + .2)
    assert at(page, frames / 30 - 0.001).std() > 15 and page.locator("#words").text_content() == text
    assert page.complaints == []


# ---------------------------------------------------------------- the README's picture

def write_picture(path) -> None:
    """The page at 1280 x 800, in the middle of a sentence."""
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        folder = Path(folder)
        viewer.write_viewer(folder / "face.html", demo_track(300), audio=demo_sound(folder / "10s.wav", 10), text=TEXT,
                            title="What are you?")
        page = open_page(browser, folder / "face.html", 1280, 800)
        page.evaluate("viewer.seek(147 / 30)")
        page.wait_for_timeout(1000)
        page.screenshot(path=path)


if __name__ == "__main__":
    write_picture(sys.argv[1])
