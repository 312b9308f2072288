"""One torch thread: the tensors are tiny, and threads that wait for each other on a busy machine cost minutes."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread():
    try:
        import torch
    except ModuleNotFoundError:  # tests of the shipped files run without the training extra
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
