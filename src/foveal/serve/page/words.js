// All words of the page, in both languages.

export const WORDS = {
  en: {
    skip: "To the question",
    pixels: "Picture size",
    asModel: "as the server says",
    upTo: (n) => `up to ${n} megapixels`,
    otherLanguage: "中文",
    theme: "Light or dark",
    fresh: "New conversation",
    question: "Ask about the pictures. Drop or paste them here.",
    add: "Add picture or video",
    keys: "Enter asks · Shift+Enter new line · Esc stops",
    stop: "Stop",
    send: "Ask",
    needsKey: "This server asks for a key",
    unlock: "Use it",
    welcome: "Drop a picture, then ask: “Describe the image.” or “Find the cup.”",
    remove: (name) => `Remove ${name}`,
    you: "You",
    model: "Answer",
    seen: (w, h, sw, sh) => `${w} × ${h}, seen as ${sw} × ${sh}`,
    cost: (asked, said, first, all, rate) =>
      `${asked} + ${said} tokens · first after ${first} s · ${all} s · ${rate} tokens/s`,
    stopped: "stopped",
    cut: "The answer was cut at its longest.",
    noRegion: "without a place in the text",
    region: (label, corners) => `${label} at ${corners}`,
    unreadable: (name) => `${name} is no picture or video that this browser can show.`,
    unreachable: "The server cannot be reached.",
    noQuestion: "Write a question first.",
    badAnswer: "The server's answer broke off.",
    unsaved: "This browser does not let the tab keep the conversation; a reload loses it.",
  },
  zh: {
    skip: "跳到提问框",
    pixels: "图片大小",
    asModel: "按服务器设置",
    upTo: (n) => `最多 ${n} 百万像素`,
    otherLanguage: "English",
    theme: "浅色或深色",
    fresh: "新对话",
    question: "就图片提问。可将图片拖放或粘贴到这里。",
    add: "添加图片或视频",
    keys: "回车提问 · Shift+回车换行 · Esc 停止",
    stop: "停止",
    send: "提问",
    needsKey: "此服务器需要密钥",
    unlock: "使用",
    welcome: "拖入一张图片,然后提问,例如“描述这张图片。”或“找到杯子。”",
    remove: (name) => `移除 ${name}`,
    you: "你",
    model: "回答",
    seen: (w, h, sw, sh) => `${w} × ${h},模型所见 ${sw} × ${sh}`,
    cost: (asked, said, first, all, rate) => `${asked} + ${said} 个词元 · 首个 ${first} 秒 · 共 ${all} 秒 · 每秒 ${rate} 个`,
    stopped: "已停止",
    cut: "回答已达到最大长度。",
    noRegion: "文中未提及",
    region: (label, corners) => `${label},位置 ${corners}`,
    unreadable: (name) => `浏览器无法显示 ${name}。`,
    unreachable: "无法连接服务器。",
    noQuestion: "请先写下问题。",
    badAnswer: "服务器的回答中断了。",
    unsaved: "此浏览器不允许保存对话;刷新后会丢失。",
  },
};

let language = sessionStorage.getItem("language") || (navigator.language.startsWith("zh") ? "zh" : "en");

export function say(word, ...values) {
  const found = WORDS[language][word];
  return typeof found === "function" ? found(...values) : found;
}

export function switchLanguage() {
  language = language === "en" ? "zh" : "en";
  sessionStorage.setItem("language", language);
}

/** Puts the words into every element that names one. */
export function label(root = document) {
  document.documentElement.lang = language;
  for (const element of root.querySelectorAll("[data-word]")) element.textContent = say(element.dataset.word);
  for (const element of root.querySelectorAll("[data-title]")) {
    element.title = say(element.dataset.title);
    element.setAttribute("aria-label", element.title);
  }
  for (const element of root.querySelectorAll("[data-hint]")) element.placeholder = say(element.dataset.hint);
}
