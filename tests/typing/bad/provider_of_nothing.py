from packhorse import Packhorse

app = Packhorse("memory://")
app.provide(str)  # error: call-arg
