from grove_megatron.printable import printable


def test_nothing_of_a_name_moves_the_cursor() -> None:
    assert printable("ü \x1b[31m<b>\x07\n2\r\x9b") == "ü \ufffd[31m<b>\ufffd\n2\ufffd\ufffd"
