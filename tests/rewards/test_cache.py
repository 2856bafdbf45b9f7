from __future__ import annotations

from lcot_plugin.rewards.cache import LruCache


def test_the_oldest_go_first_by_number() -> None:
    cache: LruCache[str, int] = LruCache(max_entries=2, max_chars=100)
    cache.put("a", 1, 1)
    cache.put("b", 2, 1)
    assert cache.get("a") == 1  # now "b" is the oldest
    cache.put("c", 3, 1)
    assert [cache.get(key) for key in "abc"] == [1, None, 3]


def test_the_oldest_go_first_by_size() -> None:
    cache: LruCache[str, int] = LruCache(max_entries=100, max_chars=10)
    cache.put("a", 1, 4)
    cache.put("b", 2, 4)
    cache.put("b", 3, 5)
    assert (len(cache), cache.num_chars) == (2, 9)
    cache.put("c", 4, 5)
    assert [cache.get(key) for key in "abc"] == [None, 3, 4]
    cache.put("d", 5, 11)
    assert (len(cache), cache.num_chars) == (0, 0)
