//! Classification by a pretrained model as it is: it reads the labels and a few examples in a prompt, and answers.

pub mod answer;
pub mod chat_template;
pub mod generate;
pub mod label_list;
pub mod likelihood;
pub mod prompt;
pub mod shots;
mod vocabulary;
