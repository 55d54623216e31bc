"""The prepare stage: a corpus, decoded once, becomes shards of utterances."""
