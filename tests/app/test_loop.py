from tests.app.conftest import Caller, sentence


def test_an_edit_changes_the_answer_and_its_removal_gives_back_the_former_bits(caller: Caller) -> None:
    text = sentence(1)
    before = caller.predict(text)
    edit = caller.edit(text)
    after = caller.predict(text)
    assert after[0]["label"] == edit["target"]
    assert [fired["edit_id"] for fired in after[0]["fired"]] == [edit["id"]]
    assert caller.predict(text, edits="off") == before
    what_if = caller.predict(text, exclude=[edit["id"]])
    assert caller.client.delete(f"/edits/{edit['id']}").status_code == 200
    assert caller.predict(text) == what_if == before
