"""One module or folder per stage; stages meet through files, and share `audio`, `whisper` and `student`."""
