"""The topic of a simulated item can be found again in its text, its picture and its sound, each by itself."""

import io
import wave

import numpy as np
import pytest
from PIL import Image
from skimage.feature import hog
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import accuracy_score
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import normalize

from onerec.simulate.draws import Draws
from onerec.simulate.parameters import SUBTOPICS, SUBTOPICS_PER_TOPIC
from onerec.simulate.pictures import SIZE, render_thumbnail
from onerec.simulate.sounds import SAMPLE_RATE, render_sound
from onerec.simulate.texts import compose
from onerec.simulate.vocabulary import VOCABULARY

ITEMS = np.arange(SUBTOPICS * 8)
SUBTOPIC = ITEMS % SUBTOPICS
TOPIC = SUBTOPIC // SUBTOPICS_PER_TOPIC
TRAINING = ITEMS // SUBTOPICS % 2 == 0
DRAWS = Draws(0)


@pytest.fixture(scope="module")
def texts():
    return compose(DRAWS, ITEMS, SUBTOPIC, SUBTOPIC * 3, 0)


@pytest.fixture(scope="module")
def pictures(texts):
    looks = DRAWS.uniform("look", ITEMS[:, None], np.arange(8)).tolist()
    return [render_thumbnail(int(SUBTOPIC[item]), texts[item].word, looks[item]) for item in ITEMS]


def found_again(features, labels) -> float:
    """Share of held-out items whose nearest class centre is their own."""
    features = normalize(features)
    nearest = NearestCentroid().fit(features[TRAINING], labels[TRAINING])
    return accuracy_score(labels[~TRAINING], nearest.predict(features[~TRAINING]))


def test_text_tells_topic_and_subtopic(texts):
    documents = [" ".join(filter(None, (text.title, text.caption, text.ocr_text, text.asr_text))) for text in texts]
    words = TfidfVectorizer(token_pattern=r"[a-z]{3,}").fit_transform(documents).toarray()
    assert found_again(words, TOPIC) > 0.9
    assert found_again(words, SUBTOPIC) > 0.9


@pytest.mark.slow
def test_gradients_of_the_picture_tell_topic_and_subtopic(pictures):
    grey = [np.asarray(Image.open(io.BytesIO(picture)).convert("L").resize((64, 64))) / 255 for picture in pictures]
    gradients = np.stack([hog(image, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2)) for image in grey])
    assert found_again(gradients, TOPIC) > 0.8
    assert found_again(gradients, SUBTOPIC) > 0.5


@pytest.mark.slow
def test_spectrum_of_the_sound_tells_the_topic():
    variation = DRAWS.uniform("sound", ITEMS[:, None], np.arange(4)).tolist()
    features = []
    for item in ITEMS[: SUBTOPICS * 4]:
        with wave.open(io.BytesIO(render_sound(int(SUBTOPIC[item]), variation[item]))) as sound:
            assert (sound.getframerate(), sound.getnchannels(), sound.getnframes()) == (SAMPLE_RATE, 1, SAMPLE_RATE)
            samples = np.frombuffer(sound.readframes(SAMPLE_RATE), "<i2") / 32768
        frames = np.abs(np.fft.rfft(samples.reshape(-1, 500) * np.hanning(500)))
        features.append(np.log(frames + 1e-3).mean(axis=0))
    features = normalize(np.stack(features) - np.mean(features, axis=0))
    labels, training = TOPIC[: len(features)], TRAINING[: len(features)]
    nearest = NearestCentroid().fit(features[training], labels[training])
    assert accuracy_score(labels[~training], nearest.predict(features[~training])) > 0.7


def test_pictures_of_a_subtopic_differ_and_are_small(pictures):
    assert len(set(pictures)) == len(pictures)
    assert max(map(len, pictures)) < 12_000
    assert Image.open(io.BytesIO(pictures[0])).size == (SIZE, SIZE)


def test_texts_name_their_topic_and_say_different_things(texts):
    assert [text.category for text in texts[:SUBTOPICS]] == [VOCABULARY[topic].name for topic in TOPIC[:SUBTOPICS]]
    assert len({text.title for text in texts}) > 0.9 * len(texts)
    assert all(text.word in text.title.lower() for text in texts)
    assert 0.6 < np.mean([text.ocr_text is not None for text in texts]) < 0.9
    assert all(len(set(text.tags)) == len(text.tags) >= 3 for text in texts)
