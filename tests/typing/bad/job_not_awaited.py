from packhorse import Packhorse

app = Packhorse("memory://")


@app.task
async def add(a: int) -> int:
    return a


async def main() -> int:
    return await add.aenqueue(1).aresult()  # error: attr-defined
