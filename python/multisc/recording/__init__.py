"""Recorded IQ: SigMF and raw sample files, read and written as streams in bounded memory."""

from multisc.recording.formats import FORMATS
from multisc.recording.reader import Recording, open_recording
from multisc.recording.writer import RecordingWriter

__all__ = ["FORMATS", "Recording", "RecordingWriter", "open_recording"]
