"""One folder per stage. Stages meet through files; what several of them use lies in `stages/shared/`."""
