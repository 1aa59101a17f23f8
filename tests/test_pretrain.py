"""pretrain.py: parts are made in order, once, and only those asked for. How each is made: its own test file."""
import pytest

from toy import pretrain


@pytest.fixture
def made(monkeypatch, tmp_path):
    """What was made, in order; each part leaves the file that says so."""
    order = []

    def maker(part, file):
        def make(data, parts, more):
            (parts / file).parent.mkdir(parents=True, exist_ok=True)
            order.append((part, more))
        return make
    parts = {part: (file, maker(part, file)) for part, (file, _) in pretrain.PARTS.items()}
    monkeypatch.setattr(pretrain, "PARTS", parts)
    monkeypatch.setattr(pretrain.listen, "compose", lambda work, out: order.append(("base", {})))
    monkeypatch.setattr(pretrain, "units", lambda data, out: order.append(("units", {})))
    return order


def test_parts_are_made_in_order_and_once(made, tmp_path, capsys):
    pretrain.main(["flow", "tokenizer", "--work", str(tmp_path), "--steps", "3", "--threads", "1"])
    assert made == [("tokenizer", {"steps": 3}), ("flow", {"steps": 3})]
    made.clear()
    pretrain.main(["--work", str(tmp_path), "--threads", "1"])
    assert [part for part, _ in made] == ["vocabulary", "llm", "encoder", "hift", "base", "units"]
    assert "flow.done is there already" in capsys.readouterr().out


def test_an_unknown_part_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        pretrain.main(["ears", "--work", str(tmp_path)])
    assert stop.value.code == 2 and "part ears: expected some of vocabulary, llm, encoder" in capsys.readouterr().err
