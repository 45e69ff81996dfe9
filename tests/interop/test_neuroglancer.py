"""Neuroglancer in a headless browser shows a sample's bright ball where it lies, round, from every level."""

import io
import os
import shutil
import signal
import subprocess
import threading

import numpy as np
import pytest
import zarr
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SIDE = 400  # pixels of a screenshot
UM_PER_PIXEL = 0.5
CENTRE_UM = (60.0, 70.0, 150.0)  # of the screen, z, y, x; the ball lies beside it, and its light reaches it
ACROSS = {"xy": ("x", "y"), "xz": ("x", "z")}  # axes of the screen: to the right, down


@pytest.fixture(scope="module")
def viewer(tmp_path_factory):
    """Neuroglancer's viewer, with a browser looking at it."""
    neuroglancer = pytest.importorskip("neuroglancer")
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    profile = tmp_path_factory.mktemp("chromium")
    viewer = neuroglancer.Viewer()
    flags = ["--headless=new", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    flags += ["--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={profile}", "--window-size=800,800"]
    with (profile / "log").open("wb") as log:
        browser = subprocess.Popen(
            [CHROMIUM, *flags, viewer.get_viewer_url()], stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield viewer
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
            neuroglancer.stop()


def shown(viewer, layers, layout, render_scale=1.0):
    """(y, x, rgb) of what the viewer shows once all is loaded."""
    import neuroglancer

    with viewer.txn(overwrite=True) as state:
        state.dimensions = neuroglancer.CoordinateSpace(names=["x", "y", "z"], units="um", scales=[1, 1, 1])
        state.position = CENTRE_UM[::-1]
        state.layout = layout
        state.cross_section_scale = UM_PER_PIXEL
        state.show_axis_lines = state.show_scale_bar = state.show_default_annotations = False
        state.cross_section_background_color = "#000000"
        state.layers.clear()  # of what was shown before
        for name, layer in layers.items():
            layer.cross_section_render_scale = render_scale
            state.layers[name] = layer
    with viewer.config_state.txn() as config:
        config.show_ui_controls = config.show_panel_borders = False
        config.viewer_size = [SIDE, SIDE]
    done, replies = threading.Event(), []
    viewer.async_screenshot(lambda reply: (replies.append(reply), done.set()))
    assert done.wait(60), "the browser took no screenshot within a minute"
    return np.asarray(Image.open(io.BytesIO(replies[0].screenshot.image)).convert("RGB")).astype(int)


def placed_um(mask, layout):
    """Centre of the pixels that are True, and half their extent, along the screen's two axes."""
    assert mask.any(), "there is nothing bright on the screen"
    down, right = np.nonzero(mask)
    middle = dict(zip("zyx", CENTRE_UM, strict=True))
    centre = [
        middle[axis] + (pixels.mean() + 0.5 - SIDE / 2) * UM_PER_PIXEL
        for axis, pixels in zip(ACROSS[layout], (right, down), strict=True)
    ]
    return centre, [np.ptp(pixels) / 2 * UM_PER_PIXEL for pixels in (right, down)]


def shown_ball(viewer, source, layout, render_scale=1.0):
    """Centre and half extent of what is bright of the first channel."""
    import neuroglancer

    layer = neuroglancer.ImageLayer(
        source=source,
        shader="void main() { emitGrayscale(toNormalized(getDataValue())); }",
        local_dimensions=neuroglancer.CoordinateSpace(names=["c'"], scales=[1], units=[""]),
        local_position=[0],
    )
    return placed_um(shown(viewer, {"image": layer}, layout, render_scale).min(axis=2) > 80, layout)


def true_ball(written, layout):
    """Centre of the ball, and its radius where the screen cuts it, in µm along the screen's two axes."""
    centre, middle = dict(zip("zyx", written.ball_um, strict=True)), dict(zip("zyx", CENTRE_UM, strict=True))
    (through,) = set("zyx") - set(ACROSS[layout])
    radius = (written.radius_um**2 - (middle[through] - centre[through]) ** 2) ** 0.5
    return [centre[axis] for axis in ACROSS[layout]], [radius, radius]


@pytest.mark.parametrize("layout", ACROSS)
def test_a_bright_ball_is_shown_in_its_place_and_round(viewer, url, written, layout):
    centre, extent = shown_ball(viewer, f"zarr3://{url}/{written.image.name}/", layout)
    true_centre, true_extent = true_ball(written, layout)
    assert centre == pytest.approx(true_centre, abs=0.4)  # a voxel is 2 µm wide and 5 µm deep
    assert extent == pytest.approx(true_extent, abs=2.0)


@pytest.mark.parametrize(("level", "render_scale"), [(0, 2), (1, 8), (2, 32)])
@pytest.mark.parametrize("layout", ACROSS)
def test_every_level_lies_where_the_finest_does(viewer, url, one_level, written, level, render_scale, layout):
    centre, _ = shown_ball(viewer, f"zarr3://{url}/{one_level(level)}/", layout, render_scale)
    assert centre == pytest.approx(true_ball(written, layout)[0], abs=0.4 * 2**level)


@pytest.mark.parametrize("layout", ACROSS)
def test_labels_are_shown_over_what_they_label(viewer, url, written, layout):
    import neuroglancer

    layer = neuroglancer.SegmentationLayer(
        source=f"zarr3://{url}/{written.image.name}/labels/train/",
        segments=[2],
        segment_colors={2: "#ff0000"},
        selected_alpha=1.0,
    )
    red, green, blue = np.moveaxis(shown(viewer, {"labels": layer}, layout), 2, 0)
    centre, extent = placed_um((red > 150) & (green < 100) & (blue < 100), layout)
    true_centre, true_extent = true_ball(written, layout)
    assert centre == pytest.approx(true_centre, abs=0.4)
    assert extent == pytest.approx(true_extent, abs=2.0)


@pytest.mark.parametrize("layout", ACROSS)
@pytest.mark.parametrize("layer", ["seconds", "states"])
def test_a_block_is_shown_where_its_voxels_lie(viewer, url, blocks, layer, layout):
    import neuroglancer

    source = f"zarr3://{url}/{blocks.path.name}/"
    if layer == "seconds":  # grey where they are 1, white where they are 0: of the block that was set aside
        shader = "void main() { emitGrayscale(1.0 - toNormalized(getDataValue()) * 0.5); }"
        shown_layer = neuroglancer.ImageLayer(source=source, shader=shader)
        seen = shown(viewer, {"seconds": shown_layer}, layout).min(axis=2) > 200
    else:
        shown_layer = neuroglancer.SegmentationLayer(
            source=f"{source}labels/states/", segments=[4], segment_colors={4: "#ff0000"}, selected_alpha=1.0
        )
        red, green, _ = np.moveaxis(shown(viewer, {"states": shown_layer}, layout), 2, 0)
        seen = (red > 150) & (green < 100)
    centre, extent = placed_um(seen, layout)
    (place,) = np.argwhere(zarr.open_array(blocks.path / "labels/states/0", mode="r")[...] == 4)
    box = dict(zip("zyx", zip(place, blocks.grid.block, blocks.voxel_size_um, strict=True), strict=True))
    true = {axis: ((place + 0.5) * block - 0.5) * um for axis, (place, block, um) in box.items()}
    assert centre == pytest.approx([true[axis] for axis in ACROSS[layout]], abs=0.5)
    assert extent == pytest.approx([box[axis][1] * box[axis][2] / 2 for axis in ACROSS[layout]], abs=0.5)
