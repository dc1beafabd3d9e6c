"""Reading and writing video: files, folders of frames, GIFs and arrays.

`open_video` gives frames, `read_clip` a clip, `read_windows` a whole video as clips; the sinks write.
"""

from tubelens.clip import READERS
from tubelens.video.extract import extract_frames
from tubelens.video.file import FileFrames
from tubelens.video.frames import ArrayFrames, Frames, open_video, sound_file
from tubelens.video.images import FolderFrames
from tubelens.video.read import read_clip, read_spec
from tubelens.video.sinks import FolderSink, GifSink, VideoSink, write_png
from tubelens.video.streams import Stream, exists, paired, source_name, source_stem, streams
from tubelens.video.views import ClipViews, View, read_views
from tubelens.video.windows import ClipWindows, read_windows

READERS["clip"] = read_spec
READERS["windows"] = read_windows
READERS["views"] = read_views

__all__ = [
    "ArrayFrames",
    "ClipViews",
    "ClipWindows",
    "FileFrames",
    "FolderFrames",
    "FolderSink",
    "Frames",
    "GifSink",
    "Stream",
    "VideoSink",
    "View",
    "exists",
    "extract_frames",
    "open_video",
    "paired",
    "read_clip",
    "read_spec",
    "read_views",
    "read_windows",
    "sound_file",
    "source_name",
    "source_stem",
    "streams",
    "write_png",
]
