from deformable_detr.inference.file_names import FreeStems


def test_no_name_is_given_out_twice():
    stems = FreeStems()
    assert [stems.take(name) for name in ("a", "A", "a-2", "b", "a")] == ["a", "A-2", "a-2-2", "b", "a-3"]


def test_odd_names_are_names_of_files():
    stems = FreeStems()
    assert stems.take("a\x1bb") == "a%x1bb"
    assert len(stems.take("é" * 300).encode()) <= 200
