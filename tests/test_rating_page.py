"""The page of ``pyro-ext rate`` in a real browser: what a person does there ends in the file."""

import os
import signal
import subprocess

import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from pyro_ext.ratings import read_ratings
from tests.test_rating_server import COMMAND

pytestmark = pytest.mark.slow


class Person:
    """Somebody who rates, with a command that can be killed."""

    def __init__(self, browser, folder, *options):
        self.browser, self.folder = browser, folder
        self.command = [*COMMAND, str(folder), *options]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().split()[-1]
        self.browser.get(self.url)

    def stop(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        self.process.communicate(timeout=20)

    def element(self, name):
        return self.browser.find_element(By.ID, name)

    def text(self, name):
        return self.element(name).text

    def wait(self, condition):
        return WebDriverWait(self.browser, 20, 0.02).until(lambda _: condition())

    def see(self, words, name="said"):
        self.wait(lambda: words in self.text(name))

    def shown(self):
        """Names of the images, once they are there and loaded: before that no key answers."""
        self.wait(lambda: self.element("skip").is_enabled() and self.text("count"))
        images = "return [...document.querySelectorAll('main img')]"
        self.wait(lambda: self.browser.execute_script(images + ".every((image) => image.complete)"))
        return self.browser.execute_script(images + ".map((image) => image.alt)")

    def press(self, key):
        self.browser.find_element(By.TAG_NAME, "body").send_keys(key)

    def click(self, name):
        self.wait(self.element(name).is_enabled)
        self.element(name).click()

    def rate(self, how, done):
        """Answer by a key or a click, and wait until so many are done; returns what was shown."""
        names = self.shown()
        self.wait(self.element("yes" if self.element("yes").is_displayed() else "save").is_enabled)
        (self.press if len(how) == 1 else self.click)(how)
        self.see(f"{done} of ", "count")
        return names


@pytest.fixture
def person(browser, tmp_path):
    people = []

    def make(names, *options):
        for i, name in enumerate(names):
            Image.new("L", (8, 8), 20 * i).save(tmp_path / name, "png")
        people.append(Person(browser, tmp_path, *options))
        return people[-1]

    yield make
    for each in people:
        if each.process.poll() is None:
            each.stop()
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    # The page tells what the server refuses; the rest would be errors of its code or its policy.
    assert not [entry for entry in severe if "Failed to load resource" not in entry["message"]]


NAMES = [f"{i}.png" for i in range(8)]


def test_labels_by_clicks_and_keys_over_reload_and_kill(person):
    someone = person(NAMES, "--concept", "seven <b>")
    someone.see("Does this image show “seven <b>”?", "question")
    wanted = {}
    for done, (how, label) in enumerate({"yes": True, "n": False, "y": True, "no": False}.items()):
        (name,) = someone.rate(how, done + 1)
        wanted[name] = label
        assert read_ratings(someone.folder).labels == wanted
    (skipped,) = someone.rate("s", 5)
    someone.see("1 of them skipped", "count")

    someone.press("u")
    someone.see(f"Taken back: {skipped}")
    assert someone.shown() == [skipped] and not read_ratings(someone.folder).skipped
    someone.click("undo")
    someone.see(f"Taken back: {name}")
    del wanted[name]
    assert read_ratings(someone.folder).labels == wanted

    someone.browser.refresh()
    assert someone.shown() == [name] and "3 of 8" in someone.text("count")
    someone.stop()
    someone.press("y")
    someone.see("Not saved: the command does not answer")
    someone.start()
    assert someone.shown() == [name] and "3 of 8" in someone.text("count")
    wanted |= {someone.rate("y", done)[0]: True for done in range(4, 9)}
    someone.see("All images are rated", "question")
    assert not someone.element("yes").is_displayed() and someone.element("undo").is_enabled()
    assert read_ratings(someone.folder).labels == wanted and len(wanted) == 8
    someone.stop(signal.SIGINT)
    assert someone.process.returncode == 0


def test_rankings_by_clicks_and_keys(person):
    someone = person(NAMES, "--concept", "old", "--rank", "3")
    names = someone.shown()
    tiles = someone.browser.find_elements(By.CSS_SELECTOR, ".group button")
    for i in (2, 0):
        tiles[i].click()
    assert [tile.find_element(By.CLASS_NAME, "order").text for tile in tiles] == ["2", "", "1"]
    assert tiles[2].get_attribute("aria-label") == f"{names[2]}, number 1 of 3"
    assert not someone.element("save").is_enabled()
    someone.press("c")  # takes it out again
    assert [tile.get_attribute("aria-pressed") for tile in tiles] == ["true", "false", "false"]
    someone.press("u")  # the last choice
    for key in "bc":
        someone.press(key)
    tiles[0].click()
    tiles[0].send_keys(Keys.ENTER)  # saves, and does not take it out
    someone.see("3 of 8", "count")
    wanted = [[names[1], names[2], names[0]]]
    assert read_ratings(someone.folder).rankings == wanted

    for done in (6, 8):
        names = someone.shown()
        for key in "abc":
            someone.press(key)
        assert someone.rate("save", done) == names
        wanted.append(names)
    someone.see("All images are rated", "question")
    assert read_ratings(someone.folder).rankings == wanted
    someone.press("u")
    someone.see("6 of 8", "count")
    assert read_ratings(someone.folder).rankings == wanted[:2] and someone.shown() == names


def test_two_tabs_rate_no_image_twice(person):
    someone = person(NAMES)
    (first,) = someone.shown()
    one = someone.browser.current_window_handle
    someone.browser.switch_to.new_window("tab")
    someone.browser.get(someone.url)
    someone.rate("y", 1)
    other = someone.browser.current_window_handle
    someone.browser.switch_to.window(one)  # where the page looks again, or is refused
    someone.press("n")
    someone.wait(lambda: "0 of 8" not in someone.text("count"))
    someone.shown()
    assert read_ratings(someone.folder).labels[first] is True
    someone.browser.switch_to.window(other)
    someone.browser.close()
    someone.browser.switch_to.window(one)


def test_strange_names_and_images_that_cannot_be_shown(person):
    strange = ["<img src=x onerror=alert(1)>.png", "a 'b' \"c\" #?%41&.png", "日本.png"]
    someone = person(strange)
    (someone.folder / "broken.png").write_bytes(b"no image")
    someone.browser.refresh()
    seen = []
    for done in range(1, 5):
        someone.wait(lambda: someone.shown() or "cannot be shown" in someone.text("stage"))
        if "cannot be shown" in someone.text("stage"):
            assert not someone.element("yes").is_enabled()
            someone.click("skip")
        else:
            seen += someone.rate("y", done)
        someone.see(f"{done} of 4", "count")
    assert sorted(seen) == sorted(strange)
    data = read_ratings(someone.folder)
    assert sorted(data.labels) == sorted(strange) and data.skipped == ["broken.png"]


def test_of_several_images_the_broken_one_is_skipped_alone(person, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    someone = person(NAMES[:2], "--rank", "3")
    someone.see("broken.png cannot be shown", "stage")
    for key in "abc":
        someone.press(key)
    assert not someone.element("save").is_enabled()
    someone.click("skip")
    someone.see("1 of 3 images, 1 of them skipped", "count")
    someone.shown()
    for key in "ba":
        someone.press(key)
    names = someone.rate("save", 3)
    data = read_ratings(someone.folder)
    assert data.rankings == [names[::-1]] and data.skipped == ["broken.png"]


def test_an_image_that_is_deleted_while_it_is_shown(person):
    someone = person(NAMES)
    (gone,) = someone.shown()
    os.remove(someone.folder / gone)
    someone.press("y")
    someone.see("Not saved: answered in another tab, or the image is gone")
    assert "0 of 7" in someone.text("count") and someone.shown() != [gone]
    someone.rate("y", 1)


def test_shortcuts_can_be_switched_off(person):
    someone = person(NAMES)
    someone.shown()
    someone.click("keys")
    someone.press("y")
    someone.click("no")
    someone.see("1 of 8", "count")
    assert list(read_ratings(someone.folder).labels.values()) == [False]
